"""Tiled decoding against decoding at once."""

import inspect
from functools import partial

import pytest
import torch
from PIL import Image
from tiny import ENCODER
from torch import nn

import uniflow.decoders
from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.decoders import PatchFlowDecoder, PixelDecoder, RegressionDecoder, ViTDecoder
from uniflow.tokenizer.tiling import decode_tiled
from uniflow.tools.reconstruct import reconstruct


class LocalConv(PixelDecoder):
    """A decoder of another package, which sees two latents around each place, and knows nothing of tiles."""

    def __init__(self, latent, width=16):
        super().__init__()
        self.spec = latent
        self.layers = nn.Sequential(
            nn.Conv2d(latent.channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * latent.patch_size**2, 3, padding=1),
            nn.PixelShuffle(latent.patch_size),
        )

    def loss(self, latents, images):
        return {"l1": (self.decode(latents) - images).abs().mean()}

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        return self.layers(latents)


FLOW = partial(PatchFlowDecoder, width=32, num_heads=2, flow_depth=2, prediction="data")
REGRESSION = partial(RegressionDecoder, width=32, num_heads=2, head_depth=1)
DECODERS = {
    "flow": partial(FLOW, global_depth=2),
    "guided": partial(FLOW, global_depth=1, guidance=2.0),
    "zero": partial(FLOW, global_depth=1, start="zero"),
    "learned": partial(REGRESSION, global_depth=1, learned_grid=(4, 4)),
    "vit": partial(ViTDecoder, width=32, num_heads=2, depth=2),
    "local_flow": partial(FLOW, global_depth=0, guidance=2.0),
    "local_learned": partial(REGRESSION, global_depth=0, learned_grid=(4, 4)),
    "local_vit": partial(ViTDecoder, width=32, num_heads=2, depth=0),
    "conv": LocalConv,
}


@pytest.fixture
def tokenizer(request):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    decoder = DECODERS[request.param](bottleneck.spec)
    made = Tokenizer(encoder, bottleneck, decoder).eval().requires_grad_(False)
    for parameter in made.decoder.parameters():  # zero-initialised layers would hide everything
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def both(tokenizer, latents, steps=2, **tiles):
    """The picture at once and by tiles, of the same seed."""
    return [
        tokenizer.decode(latents, steps=steps, generator=torch.Generator().manual_seed(3), clamp=False, **options)
        for options in ({}, tiles)
    ]


PATCH_WISE = ["flow", "guided", "zero", "learned", "vit"]
TILES = [{"tile": 4}, {"tile": 4, "overlap": 0}, {"tile": 5, "overlap": 4}, {"tile": 64}]


@pytest.mark.parametrize("tokenizer", PATCH_WISE, indirect=True)
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_with_global_context_patch_wise_decoders_paint_the_same_picture_everywhere(tokenizer, tiles):
    whole, tiled = both(tokenizer, torch.randn(2, 8, 7, 11), **tiles, global_context=True)
    assert whole.std() > 0.05
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokenizer", ["local_flow", "local_vit", "local_learned"], indirect=True)
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_without_global_blocks_tiles_paint_the_same_picture_everywhere(tokenizer, tiles):
    """Each patch sees its own latent and its place in the whole picture, and nothing else."""
    latents = torch.randn(1, 8, 7, 11)
    whole, tiled = both(tokenizer, latents, **tiles)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    moved = tokenizer.decode(latents[..., 2:, :], generator=torch.Generator().manual_seed(3), clamp=False)
    assert not torch.allclose(moved[..., :8, :8], whole[..., 16:24, :8], atol=1e-2)  # places do matter


@pytest.mark.parametrize("tokenizer", ["flow", "vit"], indirect=True)
def test_with_global_blocks_tiles_miss_what_lies_beyond_them(tokenizer):
    latents = torch.randn(1, 8, 7, 11)
    whole, tiled = both(tokenizer, latents, tile=4)
    assert not torch.allclose(tiled, whole, atol=1e-3)
    whole, one_tile = both(tokenizer, latents, tile=11)
    torch.testing.assert_close(one_tile, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokenizer", ["conv"], indirect=True)
def test_a_local_decoder_paints_the_same_picture_away_from_the_seams(tokenizer):
    """Tiles of 8 that share 2: the first ends at 8, the second begins at 6, and 2 latents of context are seen."""
    whole, tiled = both(tokenizer, torch.randn(1, 8, 8, 14), tile=8, overlap=2)
    difference = (whole - tiled).abs().amax(dim=(0, 1, 2))
    p = tokenizer.patch_size
    torch.testing.assert_close(difference[: 6 * p], torch.zeros(6 * p), atol=1e-5, rtol=0)
    torch.testing.assert_close(difference[8 * p :], torch.zeros(6 * p), atol=1e-5, rtol=0)
    assert difference[6 * p : 8 * p].max() > 1e-3  # in the seam the edges of the tiles are seen


@pytest.mark.parametrize("tokenizer", ["conv"], indirect=True)
def test_overlap_fades_linearly_and_more_of_it_comes_closer(tokenizer):
    latents = torch.randn(1, 8, 24, 24)
    errors = []
    for overlap in (0, 2, 4):
        whole, tiled = both(tokenizer, latents, tile=8, overlap=overlap)
        errors.append((whole - tiled).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


class Ramp(PixelDecoder):
    """Paints the number of the tile that it is called for."""

    def __init__(self, spec):
        super().__init__()
        self.spec, self.calls = spec, 0

    def loss(self, latents, images):
        return {}

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        self.calls += 1
        p = self.spec.patch_size
        return torch.full((len(latents), 3, latents.shape[-2] * p, latents.shape[-1] * p), float(self.calls - 1))


def test_two_tiles_cross_fade_over_their_overlap():
    spec = MLPBottleneck(ENCODER().spec, channels=8).spec
    image = decode_tiled(Ramp(spec), torch.zeros(1, 8, 1, 6), tile=4, overlap=2)[0, 0, 0]
    ramp = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(image, torch.cat([torch.zeros(16), ramp, torch.ones(16)]))


@pytest.mark.parametrize("tokenizer", ["flow"], indirect=True)
def test_noise_that_is_given_is_used_and_the_drawn_one_is_one_drawing(tokenizer):
    latents, noise = torch.randn(1, 8, 5, 6), torch.randn(1, 3, 40, 48)
    whole = tokenizer.decode(latents, noise=noise)
    tiled = tokenizer.decode(latents, noise=noise, tile=3, global_context=True)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    other = tokenizer.decode(latents, noise=-noise, tile=3, global_context=True)
    assert not torch.allclose(other, whole, atol=1e-3)


@pytest.mark.parametrize("tokenizer", ["flow"], indirect=True)
def test_reconstruct_takes_tiles(tokenizer):
    images = torch.rand(1, 3, 37, 61)
    noise = torch.randn(1, 3, 40, 64)
    whole = tokenizer.reconstruct(images, noise=noise)
    tiled = tokenizer.reconstruct(images, noise=noise, tile=3, overlap=1, global_context=True)
    assert tiled.shape == images.shape
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokenizer", ["vit"], indirect=True)
def test_the_command_takes_tiles(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    Image.effect_noise((40, 56), 60).convert("RGB").save(tmp_path / "photo.png")

    def picture(name, **tiles):
        reconstruct([tmp_path / "photo.png"], tmp_path / "tokenizer", tmp_path / name, size=0, device="cpu", **tiles)
        return (tmp_path / name / "photo.png").read_bytes()

    whole = picture("whole")
    assert picture("same", tile=3, overlap=0, global_context=True) == whole
    assert picture("tiled", tile=3) != whole
    assert picture("overlapping", tile=3, overlap=2) != picture("tiled", tile=3)


@pytest.mark.parametrize("tokenizer", ["flow"], indirect=True)
def test_bad_tiles_are_refused(tokenizer):
    latents = torch.randn(1, 8, 4, 4)
    cases = [
        ({"tile": 0}, "side of at least 1"),
        ({"tile": 4, "overlap": 4}, r"overlap in \[0, tile\), got 4 and 4"),
        ({"tile": 4, "overlap": -1}, "overlap in"),
        ({"overlap": 2}, "are of tiles"),
        ({"global_context": True}, "are of tiles"),
        ({"tile": 2, "noise": torch.randn(1, 3, 8, 8)}, "images' size 32 x 32"),
        ({"tile": 2, "steps": 0}, "from 1 to 10,000 steps"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(latents, **options)


@pytest.mark.parametrize("tokenizer", ["flow"], indirect=True)
def test_decode_hands_tiles_over(tokenizer):
    """`decode(tile=...)` and `reconstruct(tile=...)` are `decode_tiled`, with every option."""
    images = torch.rand(1, 3, 48, 48)
    latents = tokenizer.encode(images)
    tokenizer.set_latent_statistics(torch.full((8,), 0.5), torch.full((8,), 2.0), 10)
    tiles = {"tile": 4, "overlap": 2, "global_context": True}
    seeded = partial(torch.Generator().manual_seed, 3)

    def same(tiled, **options):
        return torch.equal(tiled, tokenizer.decode(latents, **tiles, generator=seeded(), **options))

    for options in ({}, {"steps": 3}, {"clamp": False}, {"normalized": True}):
        assert same(tokenizer.decode_tiled(latents, **tiles, generator=seeded(), **options), **options)
        assert not options or not same(tokenizer.decode_tiled(latents, **tiles, generator=seeded()), **options)
    assert same(tokenizer.reconstruct(images, **tiles, generator=seeded()))


@pytest.mark.parametrize("tokenizer", ["flow"], indirect=True)
def test_no_number_of_steps_is_the_decoders_own(tokenizer):
    latents, noise = torch.randn(1, 8, 6, 6), torch.randn(1, 3, 48, 48)
    tokenizer.decoder.steps = 3
    for tile in (None, 4):
        own, three, one = (tokenizer.decode(latents, steps=n, noise=noise, tile=tile) for n in (None, 3, 1))
        assert torch.equal(own, three)
        assert not torch.equal(own, one)


def test_every_decoder_takes_no_number_of_steps():
    for cls in (uniflow.decoders.PixelDecoder, *vars(uniflow.decoders).values()):
        if inspect.isclass(cls) and issubclass(cls, uniflow.decoders.PixelDecoder):
            for method in (cls.decode, cls.decode_context):
                assert inspect.signature(method).parameters["steps"].default is None, cls
