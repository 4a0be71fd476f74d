"""The embedded encoder that keeps the image: SceneViT with a linear patch embedding beside its stem."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, ClassVar

from torch import Tensor, nn

from uniflow.core.numbers import PositiveInt
from uniflow.encoders.scene_vit import ConvStem
from uniflow.encoders.timm_encoder import TimmEncoder


class StemAndPatches(ConvStem):
    """The sum of a convolutional stem, which finds shapes, and a linear patch embedding, which keeps the pixels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = kwargs["embed_dim"]
        self.linear = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = super().forward(x)
        return tokens + self.linear(x).permute(0, 2, 3, 1).reshape(tokens.shape)


class EmbeddedViT(TimmEncoder):
    """A small ViT whose layers keep the image, as the early ones of pretrained ViTs do; with weights in the package.

    `SceneViT` with a linear patch embedding, as in pretrained ViTs, added to its convolutional stem: the tokens of
    `SceneViT` have lost the details of the image before the first block. Trained on `uniflow.data.Scenes` and on
    photographs, mostly at 64 pixels. The defaults of the size are those of the packaged weights.

    Args:
        weights: `pretrained` (the file in this package, no network), the path of a safetensors file, or null.
        patch_size: side of a patch in pixels, a power of two.
        embed_dim: channels of a hidden state.
        depth: number of blocks.
        num_heads: attention heads.
        image_size: side in pixels of the images that the position embedding is made for.
        **timm: `tune`, `lora_rank` and the other arguments of `TimmEncoder`.
    """

    timm_arguments: ClassVar[dict[str, Any]] = {"embed_layer": StemAndPatches}

    def __init__(
        self,
        weights: str | None = "pretrained",
        patch_size: PositiveInt = 8,
        embed_dim: PositiveInt = 128,
        depth: PositiveInt = 6,
        num_heads: PositiveInt = 4,
        image_size: PositiveInt = 64,
        **timm: Any,
    ) -> None:
        if weights == "pretrained":
            weights = str(files("uniflow.encoders") / "weights" / "embedded_vit.safetensors")
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
        self.record_defaults(TimmEncoder)

    @property
    def base_model(self) -> None:
        """None: the packaged weights are on no hub."""
