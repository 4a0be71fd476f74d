"""The packaged encoder is what its card says."""

import re
from importlib.resources import files

import torch
from torch import Tensor

from uniflow.data.scenes import ScenesDataset, collate_scenes
from uniflow.encoders import SceneViT
from uniflow.metrics import linear_probe

WEIGHTS = files("uniflow.encoders") / "weights"
TOLERANCE = 0.06  # for a probe that is fitted on fewer pictures than the card's, and scored on few


def test_the_file_is_small() -> None:
    assert len((WEIGHTS / "scene_vit.safetensors").read_bytes()) < 5e6


def test_probe_reaches_what_the_card_says() -> None:
    card = (WEIGHTS / "scene_vit.md").read_text(encoding="utf-8")
    stated = re.search(r"linear probe[^|]*\|\s*([\d.]+) %", card, flags=re.IGNORECASE)
    assert stated, "scene_vit.md has no table row '| linear probe ... | 90.0 % |'"
    encoder = SceneViT(weights="pretrained", tune="frozen").eval()
    train, test = (mean_tokens(encoder, stream, length) for stream, length in ((101, 300), (102, 200)))
    assert linear_probe(*train, *test) > float(stated[1]) / 100 - TOLERANCE


@torch.no_grad()
def mean_tokens(encoder: SceneViT, stream: int, length: int) -> tuple[Tensor, Tensor]:
    """Mean patch tokens and labels of scenes that training, validation and test never see."""
    scenes = ScenesDataset(12345, length, stream=stream)
    batches = [collate_scenes([scenes[i] for i in range(k, k + 100)]) for k in range(0, length, 100)]
    tokens = [encoder(batch["image"]).hidden_states[-1].mean(dim=1) for batch in batches]
    return torch.cat(tokens), torch.cat([batch["label"] for batch in batches])
