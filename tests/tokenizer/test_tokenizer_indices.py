"""The tokenizer's doors for indices."""

from functools import partial

import pytest
import torch
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, MLPBottleneck, MultiVQBottleneck


def make(bottleneck):
    torch.manual_seed(0)
    encoder = ENCODER()
    part = bottleneck(encoder.spec)
    tokenizer = Tokenizer(encoder, part, FLOW(part.spec)).eval()
    with torch.no_grad():
        for parameter in tokenizer.decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return tokenizer


@pytest.mark.parametrize(
    ("bottleneck", "size", "codebooks"),
    [
        (partial(FSQBottleneck, levels=(5, 4, 3)), 60, 1),
        (partial(FSQBottleneck, levels=(5, 4, 3), num_codebooks=2, merge=2), 60, 2),
        (partial(MultiVQBottleneck, num_codebooks=3, codebook_size=32, kmeans_init=False), 32, 3),
    ],
)
def test_images_to_indices_and_back(bottleneck, size, codebooks):
    tokenizer = make(bottleneck)
    assert tokenizer.codebook_size == size
    images = torch.randint(0, 256, (2, 3, 30, 50), dtype=torch.uint8)
    indices = tokenizer.indices(images)
    p = tokenizer.patch_size
    assert indices.shape == (2, -(-30 // p), -(-50 // p), codebooks)
    assert indices.dtype == torch.int64
    latents = tokenizer.encode(images)
    noise = torch.randn(2, 3, p * indices.shape[1], p * indices.shape[2])
    for options in ({}, {"steps": 3}, {"steps": 2, "clamp": False}):
        expected = tokenizer.decode(latents, noise=noise, **options)
        assert torch.equal(tokenizer.decode_indices(indices, noise=noise, **options), expected)

    def draw(seed):
        return tokenizer.decode_indices(indices, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(
        draw(1), tokenizer.decode_indices(indices.flip(0), generator=torch.Generator().manual_seed(1))
    )


def test_latents_to_indices_and_back_without_an_image():
    tokenizer = make(partial(FSQBottleneck, levels=(5, 4, 3), num_codebooks=2))
    assert tokenizer.latent_spec == tokenizer.bottleneck.spec
    assert (tokenizer.latent_spec.codebook_size, tokenizer.latent_spec.num_codebooks) == (60, 2)
    images = torch.randint(0, 256, (2, 3, 30, 50), dtype=torch.uint8)
    indices = tokenizer.indices(images)
    assert torch.equal(tokenizer.to_indices(tokenizer.encode(images)), indices)
    assert torch.equal(tokenizer.from_indices(indices), tokenizer.encode(images))
    with pytest.raises(ValueError, match="has no latent statistics"):
        tokenizer.from_indices(indices, normalize=True)
    tokenizer.set_latent_statistics([0.2] * 6, [0.1] * 6, 5)
    latents = tokenizer.from_indices(indices, normalize=True)
    assert torch.equal(latents, tokenizer.encode(images, normalize=True))
    assert torch.equal(tokenizer.to_indices(latents, normalized=True), indices)
    assert not torch.equal(tokenizer.to_indices(latents), indices)


def test_a_continuous_tokenizer_says_that_it_has_no_codes():
    tokenizer = make(MLPBottleneck)
    assert tokenizer.codebook_size is None
    assert tokenizer.latent_spec.codebook_size is None
    calls = (
        lambda: tokenizer.indices(torch.rand(1, 3, 16, 16)),
        lambda: tokenizer.decode_indices(torch.zeros(1)),
        lambda: tokenizer.to_indices(torch.zeros(1, tokenizer.latent_channels, 2, 2)),
        lambda: tokenizer.from_indices(torch.zeros(1)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="MLPBottleneck is continuous and has no codebook; discrete are") as caught:
            call()
        assert "\n" not in str(caught.value)
