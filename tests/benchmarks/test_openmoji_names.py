"""benchmarks/openmoji_names.py: reading drawings with their names, and ranking."""

import numpy as np
import torch
from PIL import Image

from benchmarks.openmoji_names import features, own_ranks, read
from uniflow.encoders import DINOv2


def test_drawings_are_read_with_their_names(tmp_path):
    for number in range(5):
        Image.fromarray(np.full((224, 224, 3), number * 50, np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"grey {number}\n")
    names, drawings = read(tmp_path, 3)
    assert names == ["grey 0", "grey 1", "grey 3"]
    assert drawings.shape == (3, 3, 224, 224)
    assert drawings[1].unique().tolist() == [torch.tensor(50 / 255).item()]
    assert len(read(tmp_path, 9)[0]) == 5


def test_the_rank_of_a_drawing_is_how_many_are_more_alike():
    real = torch.eye(4)
    assert own_ranks(real, real).tolist() == [0, 0, 0, 0]
    swapped = torch.tensor([[0.6, 0.8, 0, 0], [0, 1, 0, 0], [0.3, 0.2, 0.1, 0.4], [0, 0, 0, 1]])
    assert own_ranks(swapped, real).tolist() == [1, 0, 3, 0]


def test_features_do_not_depend_on_the_batch_and_tell_pictures_apart():
    torch.manual_seed(0)
    judge = DINOv2("s14", weights=None, image_size=224, depth=1, embed_dim=32, num_heads=2).eval()
    images = torch.rand(3, 3, 224, 224)
    together = features(judge, images)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3))
    assert torch.allclose(together[1:2], features(judge, images[1:2]), atol=1e-5)
    assert own_ranks(together, together).tolist() == [0, 0, 0]
