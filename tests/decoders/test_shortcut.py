"""The linear path from latents to pixels: what it paints, in every decoder and whatever is predicted."""

import pytest
import torch
from test_decoder_contract import DECODERS, SPEC, TINY

from uniflow.decoders import PatchFlowDecoder
from uniflow.decoders.shortcut import LinearShortcut, join, split
from uniflow.layers.grid import unpatchify

P = 3 * SPEC.patch_size**2
CASES = [(cls, {}) for cls in DECODERS] + [
    (PatchFlowDecoder, {"prediction": "data"}),
    (PatchFlowDecoder, {"prediction": "data", "pixel_mean": (0.4, 0.5, 0.3), "pixel_std": (0.2, 0.3, 0.25)}),
    (PatchFlowDecoder, {"pixel_mean": (0.4, 0.5, 0.3), "pixel_std": (0.2, 0.3, 0.25), "start": "zero"}),
]
pytestmark = pytest.mark.filterwarnings("ignore:a velocity-predicting")


def solution(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(P, SPEC.channels, generator=generator)
    return weight, torch.rand(P, generator=generator), 0.01 + 0.01 * torch.rand(P, generator=generator)


def started(cls, **kwargs):
    torch.manual_seed(0)
    decoder = cls(SPEC, **TINY[cls], shortcut=True, **kwargs)
    with torch.no_grad():  # a start has to silence the rest, whatever it was
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    with torch.no_grad():
        for name, value in decoder.linear_start(*solution()).items():
            state[name].copy_(value)
    return decoder


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_one_step_paints_the_linear_map(cls, kwargs, autocast):
    decoder, latents = started(cls, **kwargs), torch.randn(2, SPEC.channels, 2, 3)
    weight, bias, _ = solution()
    patches = latents.flatten(2).transpose(1, 2) @ weight.T + bias
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        painted = decoder.decode(latents, steps=1)
    expected = unpatchify(patches, SPEC.patch_size, (2, 3))
    # The context that latents travel in is bfloat16 under autocast.
    torch.testing.assert_close(painted, expected, atol=2e-2 if autocast else 1e-5, rtol=0)


@pytest.mark.parametrize("cls", DECODERS)
def test_the_shortcut_is_painted_from_and_trained(cls):
    torch.manual_seed(0)
    decoder = cls(SPEC, **TINY[cls], shortcut=True)
    latents, images = torch.randn(2, SPEC.channels, 2, 3), torch.rand(2, 3, 8, 12)
    before = decoder.decode(latents, noise=torch.zeros_like(images))
    sum(decoder.loss(latents, images).values()).backward()
    assert decoder.shortcut.weight.grad.abs().sum() > 0
    decoder.shortcut.bias.data += 0.5
    assert not torch.equal(decoder.decode(latents, noise=torch.zeros_like(images)), before)


@pytest.mark.parametrize("cls", DECODERS)
def test_its_context_can_be_cut_and_painted_apart(cls):
    decoder, latents = started(cls), torch.randn(1, SPEC.channels, 2, 4)
    noise = torch.randn(1, 3, 8, 16)
    whole = decoder.decode_context(decoder.context(latents), noise=noise)
    torch.testing.assert_close(whole, decoder.decode(latents, noise=noise))


def test_the_velocity_is_the_posterior_s():
    """Against E[x - eps | x_t] of a normal patch by conditioning: x ~ N(mu, s), x_t = (1 - t) eps + t x."""
    torch.manual_seed(0)
    path = LinearShortcut(2, 1, (0.5,) * 3, (0.5,) * 3).double()
    path.weight.data.normal_()
    path.variance.fill_(0.3)
    latents, x_t = torch.randn(7, 2, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    t, s = torch.linspace(0, 1, 7, dtype=torch.float64), 0.3
    mu, time = path(latents), t[:, None]
    gain = time * s / (time**2 * s + (1 - time) ** 2)
    data = mu + gain * (x_t - time * mu)
    noise = ((1 - time) / (time**2 * s + (1 - time) ** 2)) * (x_t - time * mu)
    torch.testing.assert_close(path.velocity(latents, x_t, t), data - noise)


def test_many_steps_end_near_the_linear_map_where_it_is_sure():
    decoder = started(PatchFlowDecoder)
    decoder.shortcut.variance.fill_(1e-4)
    latents, noise = torch.randn(2, SPEC.channels, 2, 3), torch.randn(2, 3, 8, 12)
    one, many = (decoder.decode(latents, steps=steps, noise=noise) for steps in (1, 50))
    assert (one - many).abs().mean() < 0.02


def test_joining_is_undone_by_splitting():
    tokens, latents, path = torch.randn(2, 3, 5), torch.randn(2, 3, 4), LinearShortcut(4, 2, (0.5,) * 3, (0.5,) * 3)
    first, second = split(path, join(path, tokens, latents))
    assert torch.equal(first, tokens)
    assert torch.equal(second, latents)
    assert join(None, tokens, latents) is tokens
    assert split(None, tokens)[1].shape == (2, 3, 0)


@pytest.mark.parametrize("cls", DECODERS)
def test_without_a_shortcut_there_is_no_start(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} has no linear path to start from: set its shortcut to true"):
        cls(SPEC, **TINY[cls]).linear_start(*solution())
