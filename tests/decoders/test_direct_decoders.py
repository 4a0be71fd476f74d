"""The decoders that paint in one go: transformer and convolutions."""

import pytest
import torch
import torch.nn.functional as F

from uniflow.core.specs import LatentSpec
from uniflow.decoders import ConvDecoder, ViTDecoder
from uniflow.decoders.conv import Upsample, prime_factors

SPEC = LatentSpec(channels=8, patch_size=4)
TINY = {
    ViTDecoder: {"width": 32, "num_heads": 2, "depth": 2},
    ConvDecoder: {"width": 32, "min_width": 8, "depth": 1, "groups": 4},
}


def make(cls, spec=SPEC, **kwargs):
    torch.manual_seed(0)
    decoder = cls(spec, **(TINY[cls] | kwargs))
    for name, parameter in decoder.named_parameters():  # zero-initialised layers would hide everything
        generator = torch.Generator().manual_seed(len(name))
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return decoder


@pytest.mark.parametrize("cls", TINY)
def test_the_loss_is_the_distance_of_pixels_in_minus_one_to_one(cls):
    latents, images = torch.randn(2, 8, 3, 2), torch.rand(2, 3, 12, 8)
    painted = make(cls).decode(latents)
    expected = {"l1": 2 * (painted - images).abs().mean(), "l2": 4 * (painted - images).square().mean()}
    for name, value in expected.items():
        losses = make(cls, loss=name).loss(latents, images)
        assert list(losses) == [name]
        torch.testing.assert_close(losses[name], value)


@pytest.mark.parametrize("cls", TINY)
def test_it_starts_mid_grey(cls):
    assert torch.equal(cls(SPEC, **TINY[cls]).decode(torch.randn(1, 8, 2, 2)), torch.full((1, 3, 8, 8), 0.5))


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (ViTDecoder, {"width": 48}),
        (ViTDecoder, {"depth": 0}),
        (ViTDecoder, {"num_heads": 4}),
        (ConvDecoder, {"width": 64}),
        (ConvDecoder, {"min_width": 16}),
        (ConvDecoder, {"depth": 2}),
        (ConvDecoder, {"groups": 2}),
    ],
    ids=str,
)
def test_settings_change_the_picture(cls, change):
    latents = torch.randn(1, 8, 3, 3)
    assert torch.equal(make(cls).decode(latents), make(cls).decode(latents))
    assert not torch.equal(make(cls, **change).decode(latents), make(cls).decode(latents))


def test_learned_position_embeddings_are_trained():
    decoder = make(ViTDecoder, learned_grid=(3, 3))
    sum(decoder.loss(torch.randn(1, 8, 2, 5), torch.rand(1, 3, 8, 20)).values()).backward()
    assert decoder.position.table.grad.abs().sum() > 0
    assert make(ViTDecoder).position.table is None


@pytest.mark.parametrize("cls", TINY)
def test_a_patch_depends_on_its_neighbours(cls):
    decoder, latents = make(cls), torch.randn(1, 8, 1, 8)
    changed = latents.clone()
    changed[..., 0] += 1
    moved = (decoder.decode(changed) - decoder.decode(latents)).abs().amax(dim=(0, 1, 2))
    assert (moved[4:8] > 1e-3).all()


@pytest.mark.parametrize("patch_size", [1, 2, 7, 14, 16, 28])
def test_convolutions_reach_any_patch_size(patch_size):
    decoder = make(ConvDecoder, LatentSpec(channels=8, patch_size=patch_size))
    assert decoder.decode(torch.randn(1, 8, 1, 2)).shape == (1, 3, patch_size, 2 * patch_size)


def test_prime_factors():
    assert [prime_factors(n) for n in (1, 8, 13, 14, 28)] == [[], [2, 2, 2], [13], [7, 2], [7, 2, 2]]


@pytest.mark.parametrize("factor", [2, 7])
def test_upsampling_starts_as_nearest_neighbour(factor):
    upsample, x = Upsample(6, 4, factor), torch.randn(2, 6, 3, 2)
    once = F.conv2d(x, upsample[0].weight[:: factor**2], upsample[0].bias[:: factor**2])
    torch.testing.assert_close(upsample(x), F.interpolate(once, scale_factor=factor, mode="nearest"))
    assert once.abs().sum() > 0


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (ViTDecoder, {"num_heads": 5}, "by its num_heads 5, got 32"),
        (ViTDecoder, {"width": 30, "num_heads": 2}, "divisible by 4"),
        (ViTDecoder, {"loss": "l3"}, "ViTDecoder.loss must be one of l1, l2, got 'l3'"),
        (ConvDecoder, {"loss": "l3"}, "ConvDecoder.loss must be one of l1, l2, got 'l3'"),
        (ConvDecoder, {"groups": 5}, r"every stage, \[32, 16, 8\], got 5"),
        (ConvDecoder, {"min_width": 64}, r"min_width must be at most width = 32, got 64"),
        (ConvDecoder, {"depth": 0}, "depth must be an integer >= 1, got 0"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(cls, change, message):
    with pytest.raises(ValueError, match=message):
        make(cls, **change)
