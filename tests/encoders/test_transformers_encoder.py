"""Hidden states of `TransformersEncoder`: those of the towers inside multimodal models. Those of towers alone are
compared in test_family_reference.py.
"""

import pytest
import torch
from tiny_towers import MODELS, TOWERS, build, fill
from transformers import vision_utils

from uniflow.encoders import TransformersEncoder
from uniflow.encoders.transformers_towers import window_order


def images(encoder, rows: int, columns: int, count: int = 2) -> torch.Tensor:
    p = encoder.spec.patch_size
    return torch.rand(count, 3, rows * p, columns * p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def states_of_tower(tower: torch.nn.Module, encoder: TransformersEncoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the blocks of a tower as it stands in its model, tokens in row-major order."""
    pixels, p = encoder.normalize(pixels), encoder.spec.patch_size
    rows, columns = pixels.shape[-2] // p, pixels.shape[-1] // p
    if tower.config.model_type == "siglip2_vision_model":
        patches = pixels.reshape(-1, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[rows, columns]] * len(pixels))
        return list(tower(patches, None, shapes, output_hidden_states=True).hidden_states[1:])
    if "qwen" not in tower.config.model_type:
        resize = {} if "dinov" in tower.config.model_type else {"interpolate_pos_encoding": True}
        return list(tower(pixels, output_hidden_states=True, **resize).hidden_states[1:])
    # Qwen-VL's processor: two equal frames, patches of a 2 x 2 block behind each other.
    merge = pixels.reshape(-1, 3, 1, rows // 2, 2, p, columns // 2, 2, p).expand(-1, -1, 2, -1, -1, -1, -1, -1, -1)
    merge = merge.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(len(pixels) * rows * columns, -1)
    grids = torch.tensor([[1, rows, columns]] * len(pixels))
    order = torch.arange(rows * columns).reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4)
    if "qwen2_5" in tower.config.model_type:
        order = order[vision_utils.get_vision_window_index(grids[:1], 2, tower.config.window_size, p)[0]]
    states = tower(merge, grids, output_hidden_states=True).hidden_states[1:]
    return [state.unflatten(0, (len(pixels), -1))[:, order.flatten().argsort()] for state in states]


@pytest.mark.parametrize("name", MODELS)
def test_tower_inside_a_model(name, tmp_path):
    model, tower = build(name)
    model.save_pretrained(tmp_path)
    encoder = TransformersEncoder(str(tmp_path)).eval()
    assert not any(parameter.is_meta for parameter in encoder.parameters())
    for grid in [(4, 4), (6, 10)]:
        pixels = images(encoder, *grid).float()
        output = encoder(pixels)
        expected = states_of_tower(tower, encoder, pixels)
        assert len(output.hidden_states) == len(expected) == 2
        for prefix, hidden, state in zip(output.prefix_tokens, output.hidden_states, expected, strict=True):
            torch.testing.assert_close(torch.cat([prefix, hidden], dim=1), state, rtol=0, atol=1e-5)


def test_tower_of_qwen_takes_odd_grids():
    """Grids that cannot be merged 2 x 2."""
    encoder = TransformersEncoder("local", weights=None, config=TOWERS["qwen2_5_vl"]).eval()
    fill(encoder)
    pixels = images(encoder, 8, 5)
    # Block 0 attends within windows of 4 x 4 patches: those of the upper half see nothing of the lower one.
    whole, half = encoder(pixels).feature_map(0), encoder(pixels[:, :, : 5 * encoder.spec.patch_size]).feature_map(0)
    torch.testing.assert_close(half[:, :, :4], whole[:, :, :4])
    assert not torch.allclose(half[:, :, 4:], whole[:, :, 4:5])


def test_window_order():
    assert window_order(3, 3, 2).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    index, _ = vision_utils.get_vision_window_index(torch.tensor([[1, 6, 7]]), 1, 4, 1)
    assert window_order(6, 7, 4).tolist() == index.tolist()
