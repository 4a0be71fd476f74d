"""The weights that come with the package, and the embedding beside the stem."""

from importlib.resources import files

import pytest
import torch

from uniflow.encoders import EmbeddedViT, SceneViT

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def test_packaged_weights_fit_the_defaults():
    encoder, random = EmbeddedViT(), EmbeddedViT(weights=None)
    assert (encoder.spec.image_size, encoder.spec.patch_size) == (64, 8)
    assert not torch.equal(encoder.model.blocks[0].attn.qkv.weight, random.model.blocks[0].attn.qkv.weight)


def test_packaged_weights_are_small():
    assert (files("uniflow.encoders") / "weights" / "embedded_vit.safetensors").stat().st_size < 3_500_000


def test_the_linear_embedding_is_added_to_the_stem_token_by_token():
    torch.manual_seed(0)
    encoder, plain = EmbeddedViT(weights=None, **TINY), SceneViT(weights=None, **TINY)
    plain.load_state_dict(encoder.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 48)
    pixels = encoder.normalize(images)
    added = encoder.model.patch_embed(pixels) - plain.model.patch_embed(pixels)
    weight, bias = encoder.model.patch_embed.linear.weight, encoder.model.patch_embed.linear.bias
    patch = pixels[1, :, 16:24, 8:16]  # row 2, column 1
    torch.testing.assert_close(added[1, 2, 1], weight.flatten(1) @ patch.flatten() + bias, rtol=1e-4, atol=1e-5)


def test_sizes_that_the_stem_cannot_have_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        EmbeddedViT(weights=None, patch_size=6, image_size=48, **TINY)
