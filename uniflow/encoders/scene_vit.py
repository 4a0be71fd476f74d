"""The embedded encoder: a tiny ViT for 64-pixel scenes, whose weights come with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from uniflow.encoders.timm_encoder import TimmEncoder


class SceneViT(TimmEncoder):
    """A small ViT for 64-pixel images, trained on `uniflow.data.Scenes`; the encoder of the quickstart and of tests.

    The architecture is timm's `vit_tiny_patch16_224` in other sizes, with one class token. The defaults of the size are
    those of the packaged weights.

    Args:
        weights: `pretrained` (the file in this package, no network), the path of a safetensors file, or null.
        patch_size: side of a patch in pixels.
        embed_dim: channels of a hidden state.
        depth: number of blocks.
        num_heads: attention heads.
        **timm: `tune`, `gradient_checkpointing`, `pos_embed_antialias` and `image_size` of `TimmEncoder`.
    """

    def __init__(
        self,
        weights: str | None = "pretrained",
        patch_size: int = 8,
        embed_dim: int = 160,
        depth: int = 6,
        num_heads: int = 5,
        image_size: int = 64,
        **timm: Any,
    ) -> None:
        if weights == "pretrained":
            weights = str(files("uniflow.encoders") / "weights" / "scene_vit.safetensors")
        super().__init__(
            "vit_tiny_patch16_224",
            weights=weights,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            image_size=image_size,
            **timm,
        )
