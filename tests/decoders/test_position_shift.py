"""`position_shift`: positions that only larger pictures have are seen in training."""

import pytest
import torch

from uniflow.core.specs import LatentSpec
from uniflow.decoders import PatchFlowDecoder, RegressionDecoder, ViTDecoder
from uniflow.decoders.global_stage import GlobalStage
from uniflow.layers.grid import PositionEmbedding, sincos_2d

SPEC = LatentSpec(channels=8, patch_size=4)
DECODERS = {
    PatchFlowDecoder: {"width": 48, "num_heads": 2, "global_depth": 1, "flow_depth": 1},
    RegressionDecoder: {"width": 48, "num_heads": 2, "global_depth": 1, "head_depth": 1},
    ViTDecoder: {"width": 48, "num_heads": 2, "depth": 1},
}


def make(cls, shift):
    torch.manual_seed(0)
    decoder = cls(SPEC, **DECODERS[cls], position_shift=shift)
    with torch.no_grad():
        for parameter in decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder


@pytest.mark.parametrize("cls", DECODERS)
def test_it_changes_training_and_not_evaluation(cls):
    shifted, plain = make(cls, 5), make(cls, 0)
    latents = torch.randn(2, 8, 3, 4)

    def contexts():
        return shifted.context(latents), plain.context(latents)

    torch.manual_seed(1)
    assert not torch.allclose(*contexts(), atol=1e-4)
    shifted.eval()
    plain.eval()
    assert torch.equal(*contexts())


@pytest.mark.parametrize("cls", DECODERS)
def test_without_it_no_random_number_is_drawn(cls):
    decoder, latents = make(cls, 0), torch.randn(2, 8, 3, 4)
    before = torch.get_rng_state()
    decoder.context(latents)
    assert torch.equal(before, torch.get_rng_state())
    shifted = make(cls, 1).eval()
    before = torch.get_rng_state()
    shifted.context(latents)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shifted_grid_is_a_window_of_the_larger_one():
    embedding = PositionEmbedding(16, shift=6)
    tokens = torch.zeros(3, 4 * 5, 16)
    larger = sincos_2d(16, (10, 11)).view(10, 11, 16)
    offsets = [(0, 0), (6, 2), (3, 6)]
    added = embedding(tokens, (4, 5), offsets=offsets).view(3, 4, 5, 16)
    for image, (down, right) in zip(added, offsets, strict=True):
        torch.testing.assert_close(image, larger[down : down + 4, right : right + 5])
    # Of a window of the picture, the same places.
    window = (slice(1, 3), slice(2, 5))
    part = embedding(torch.zeros(3, 6, 16), (4, 5), window, offsets).view(3, 2, 3, 16)
    assert torch.equal(part, added[:, 1:3, 2:5])


def test_offsets_reach_from_zero_to_the_shift_and_follow_the_seed():
    embedding = PositionEmbedding(16, shift=3)
    torch.manual_seed(0)
    drawn = embedding.draw_offsets(400)
    assert {row for row, _ in drawn} == {column for _, column in drawn} == {0, 1, 2, 3}
    torch.manual_seed(0)
    assert embedding.draw_offsets(400) == drawn
    assert embedding.eval().draw_offsets(400) is None


def test_both_embeddings_of_the_global_stage_are_moved_alike(monkeypatch):
    stage = GlobalStage(8, 16, 1, 2, position_shift=9)
    seen = []
    forward = PositionEmbedding.forward
    monkeypatch.setattr(PositionEmbedding, "forward", lambda self, *args: seen.append(args[3]) or forward(self, *args))
    stage(torch.randn(4, 8, 2, 3))
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1  # each image has a place of its own


@pytest.mark.parametrize("cls", DECODERS)
def test_settings_that_cannot_work_are_refused(cls):
    with pytest.raises(ValueError, match="position_shift must be an integer >= 0"):
        cls(SPEC, **DECODERS[cls], position_shift=-1)
    with pytest.raises(ValueError, match="position_shift moves fixed position embeddings"):
        cls(SPEC, **DECODERS[cls], position_shift=4, learned_grid=(4, 4))
