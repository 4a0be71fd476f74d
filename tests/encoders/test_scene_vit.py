"""The weights that come with the package."""

from importlib.resources import files

import torch

from uniflow.encoders import SceneViT


def test_packaged_weights_fit_the_defaults():
    encoder, random = SceneViT(), SceneViT(weights=None)
    assert (encoder.spec.image_size, encoder.spec.patch_size) == (64, 8)
    assert not torch.equal(encoder.model.blocks[0].attn.qkv.weight, random.model.blocks[0].attn.qkv.weight)


def test_packaged_weights_are_small():
    assert (files("uniflow.encoders") / "weights" / "scene_vit.safetensors").stat().st_size < 5_000_000
