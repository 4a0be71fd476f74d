"""Attention over time: nothing at first, nothing for images, causal, windowed, the same piece by piece."""

import pytest
import torch

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.core.specs import LatentSpec
from uniflow.decoders import PatchFlowDecoder, RegressionDecoder

from tiny import ENCODER  # isort: skip

SPEC = LatentSpec(8, 8)
SIZES = {"width": 32, "num_heads": 2, "global_depth": 2, "flow_depth": 2, "prediction": "data"}


def noisy(module, only=""):
    """Zero-initialised layers would hide everything."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if only in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return module


@pytest.fixture
def image_decoder():
    torch.manual_seed(0)
    return noisy(PatchFlowDecoder(SPEC, **SIZES)).eval()


def temporal(image_decoder, window=3, learned=True):
    decoder = PatchFlowDecoder(SPEC, **SIZES, temporal_window=window).eval()
    missing = decoder.load_state_dict(image_decoder.state_dict(), strict=False).missing_keys
    assert missing
    assert all("global_stage.temporal" in name for name in missing)
    return noisy(decoder, "temporal") if learned else decoder


def clips(count=2, frames=6):
    torch.manual_seed(2)
    return torch.randn(count * frames, 8, 2, 3), torch.randn(count * frames, 3, 16, 24)


@torch.no_grad()
def decode(decoder, latents, noise, frames=1, memory=None):
    with decoder.over_time(frames, memory):
        return decoder.decode(latents, noise=noise)


def test_a_fresh_decoder_over_clips_is_the_image_decoder_bit_for_bit(image_decoder):
    latents, noise = clips()
    fresh = temporal(image_decoder, learned=False)
    assert fresh.temporal
    assert not image_decoder.temporal
    assert torch.equal(decode(fresh, latents, noise, frames=6), decode(image_decoder, latents, noise))
    # A decoder of images takes clips for images.
    assert torch.equal(decode(image_decoder, latents, noise, frames=6), decode(image_decoder, latents, noise))


def test_one_frame_is_the_image_decoder_bit_for_bit_whatever_was_learned(image_decoder):
    latents, noise = clips()
    learned = temporal(image_decoder)
    expected = decode(image_decoder, latents, noise)
    assert torch.equal(decode(learned, latents, noise), expected)  # images
    found = decode(learned, latents, noise, frames=6).unflatten(0, (2, 6))
    assert torch.equal(found[:, 0], expected.unflatten(0, (2, 6))[:, 0])  # first frames
    alone = decode(image_decoder, latents[:1], noise[:1])  # not of the batch: CPUs add in another order there
    assert torch.equal(decode(learned, latents[:1], noise[:1], frames=1, memory={}), alone)
    assert (found[:, 1:] - expected.unflatten(0, (2, 6))[:, 1:]).abs().amax(dim=(2, 3, 4)).min() > 1e-3


def test_where_nothing_moves_nothing_is_added(image_decoder):
    latents, noise = (values[:1].repeat(6, 1, 1, 1) for values in clips())
    found = decode(temporal(image_decoder), latents, noise, frames=6)
    torch.testing.assert_close(found, decode(image_decoder, latents, noise), atol=1e-5, rtol=0)


def test_frames_see_the_past_of_their_own_clip_alone_and_as_far_as_the_window(image_decoder):
    decoder = temporal(image_decoder, window=2)  # two blocks: two frames back
    latents, noise = clips()
    changed = latents.clone()
    changed[7] += 1  # frame 1 of clip 1
    before, after = (decode(decoder, values, noise, frames=6) for values in (latents, changed))
    moved = (before - after).abs().amax(dim=(1, 2, 3))
    assert moved[[*range(7), 10, 11]].max() < 1e-6
    assert moved[7:10].min() > 1e-4
    wide = decode(temporal(image_decoder, window=4), latents, noise, frames=6)
    assert not torch.allclose(wide, before, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1,) * 6, (2, 4), (5, 1)])
def test_a_clip_piece_by_piece_is_the_whole_clip(image_decoder, sizes):
    decoder = temporal(image_decoder)
    latents, noise = clips(1)
    memory = {}
    pieces = [
        decode(decoder, *pair, frames=len(pair[0]), memory=memory)
        for pair in zip(latents.split(sizes), noise.split(sizes), strict=True)
    ]
    whole = decode(decoder, latents, noise, frames=6)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=0)
    assert all(key.shape[2] == 2 for key, _ in memory.values())  # bounded: the window less this frame


def test_training_moves_the_grid_of_a_clip_as_one():
    torch.manual_seed(0)
    decoder = PatchFlowDecoder(SPEC, **SIZES, position_shift=9, temporal_window=2).train()
    latents = torch.zeros(6, 8, 2, 3)
    with decoder.over_time(3), torch.no_grad():
        tokens = decoder.global_stage(latents).unflatten(0, (2, 3))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))
    assert not torch.allclose(tokens[0], tokens[1])


def test_the_loss_reads_clips_and_its_gradient_reaches_the_past(image_decoder):
    decoder = temporal(image_decoder, learned=False)
    latents, images = clips()
    with decoder.over_time(6):
        sum(decoder.loss(latents, images).values()).backward()
    projections = [m.projection.weight.grad for m in decoder.global_stage.temporal]
    assert all(grad.abs().max() > 0 for grad in projections)


def test_what_does_not_fit_is_one_line(image_decoder):
    latents, noise = clips()
    with pytest.raises(ValueError, match="12 latents are not whole clips of 5 frames"):
        decode(temporal(image_decoder), latents, noise, frames=5)
    with pytest.raises(ValueError, match="a temporal_window needs global blocks"):
        PatchFlowDecoder(SPEC, **(SIZES | {"global_depth": 0}), temporal_window=2)


def test_saved_and_loaded_and_without_it_as_before(tmp_path, image_decoder):
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, temporal(image_decoder)).eval()
    model.save_pretrained(tmp_path / "clips")
    loaded = Tokenizer.from_pretrained(tmp_path / "clips")
    latents, noise = clips()
    assert torch.equal(decode(loaded.decoder, latents, noise, 6), decode(model.decoder, latents, noise, 6))
    config = Tokenizer(encoder, bottleneck, image_decoder).config()
    del config["decoder"]["init_args"]["temporal_window"]  # as earlier versions saved it
    old = Tokenizer.from_config(config)
    assert old.decoder.state_dict().keys() == image_decoder.state_dict().keys()
    regression = RegressionDecoder(SPEC, width=32, num_heads=2, global_depth=1, head_depth=1)
    with regression.over_time(6):  # other decoders take frames for images
        assert regression.decode(latents).shape == noise.shape
