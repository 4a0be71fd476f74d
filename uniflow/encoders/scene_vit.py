"""The embedded encoder: a tiny ViT for 64-pixel scenes, whose weights come with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, ClassVar

from timm.layers import LayerNorm2d, PatchEmbed
from torch import nn

from uniflow.core.numbers import PositiveInt
from uniflow.encoders.timm_encoder import TimmEncoder


class ConvStem(PatchEmbed):
    """timm's patch embedding with a stack of stride-2 convolutions instead of its one linear layer.

    After Xiao et al. 2021, "Early convolutions help transformers see better" (arXiv 2106.14881), with layer norms,
    which behave the same in training and evaluation. Takes timm's arguments.

    Raises:
        ValueError: if the patch size is not a power of two, or the channels do not halve often enough.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patch_size, width = self.patch_size[0], self.proj.weight.shape[0]
        stages = patch_size.bit_length() - 1
        if 2**stages != patch_size or width % 2 ** max(stages - 1, 0):
            raise ValueError(
                f"the stem needs a patch size that is a power of two and an embed_dim that halves for each "
                f"stage after the first, not patch_size {patch_size} and embed_dim {width}"
            )
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(stages):
            out = width // 2 ** (stages - 1 - stage)
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), LayerNorm2d(out), nn.GELU()]
            channels = out
        self.add_module("proj", nn.Sequential(*layers, nn.Conv2d(channels, width, 1)))


class SceneViT(TimmEncoder):
    """A small ViT for 64-pixel images, trained on `uniflow.data.Scenes`; the encoder of the ablations and of tests.

    The architecture is timm's `vit_tiny_patch16_224` in other sizes, with one class token and a convolutional stem,
    which learns shapes from fewer images. The defaults of the size are those of the packaged weights.

    Args:
        weights: `pretrained` (the file in this package, no network), the path of a safetensors file, or null.
        patch_size: side of a patch in pixels, a power of two.
        embed_dim: channels of a hidden state.
        depth: number of blocks.
        num_heads: attention heads.
        image_size: side in pixels of the images that the position embedding is made for.
        **timm: `tune`, `lora_rank` and the other arguments of `TimmEncoder`.
    """

    timm_arguments: ClassVar[dict[str, Any]] = {"embed_layer": ConvStem}

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
        self.record_defaults(TimmEncoder)

    @property
    def base_model(self) -> None:
        """None: the packaged weights are on no hub."""
