"""The encoder families: short names of timm weights, with the defaults of the family's reference, its class in
transformers. The tag after the dot of a timm name says which weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from uniflow.encoders.timm_encoder import TimmEncoder

CLIPVariant = Literal[
    "b32_openai", "b16_openai", "l14_openai", "l14_336_openai",
    "b16_dfn", "l14_dfn", "h14_dfn", "h14_378_dfn",
    "b16_laion", "l14_laion", "h14_laion",
]  # fmt: skip

# OpenAI's and most DFN weights were trained with QuickGELU: under the plain name timm computes something else.
CLIP_NAMES: dict[CLIPVariant, str] = {
    "b32_openai": "vit_base_patch32_clip_quickgelu_224.openai",
    "b16_openai": "vit_base_patch16_clip_quickgelu_224.openai",
    "l14_openai": "vit_large_patch14_clip_quickgelu_224.openai",
    "l14_336_openai": "vit_large_patch14_clip_quickgelu_336.openai",
    "b16_dfn": "vit_base_patch16_clip_224.dfn2b",
    "l14_dfn": "vit_large_patch14_clip_quickgelu_224.dfn2b",
    "h14_dfn": "vit_huge_patch14_clip_quickgelu_224.dfn5b",
    "h14_378_dfn": "vit_huge_patch14_clip_quickgelu_378.dfn5b",
    "b16_laion": "vit_base_patch16_clip_224.laion2b",
    "l14_laion": "vit_large_patch14_clip_224.laion2b",
    "h14_laion": "vit_huge_patch14_clip_224.laion2b",
}

SigLIPVariant = Literal[
    "v2_b16_224", "v2_b16_256", "v2_b16_384", "v2_b16_512", "v2_l16_256", "v2_l16_384", "v2_l16_512",
    "v2_so400m_14_224", "v2_so400m_14_378", "v2_so400m_16_256", "v2_so400m_16_384", "v2_so400m_16_512",
    "v2_g16_256", "v2_g16_384",
    "v1_b16_224", "v1_b16_256", "v1_b16_384", "v1_b16_512", "v1_l16_256", "v1_l16_384",
    "v1_so400m_14_224", "v1_so400m_14_378", "v1_so400m_14_384",
]  # fmt: skip

SIGLIP_NAMES: dict[SigLIPVariant, str] = {
    "v2_b16_224": "vit_base_patch16_siglip_224.v2_webli",
    "v2_b16_256": "vit_base_patch16_siglip_256.v2_webli",
    "v2_b16_384": "vit_base_patch16_siglip_384.v2_webli",
    "v2_b16_512": "vit_base_patch16_siglip_512.v2_webli",
    "v2_l16_256": "vit_large_patch16_siglip_256.v2_webli",
    "v2_l16_384": "vit_large_patch16_siglip_384.v2_webli",
    "v2_l16_512": "vit_large_patch16_siglip_512.v2_webli",
    "v2_so400m_14_224": "vit_so400m_patch14_siglip_224.v2_webli",
    "v2_so400m_14_378": "vit_so400m_patch14_siglip_378.v2_webli",
    "v2_so400m_16_256": "vit_so400m_patch16_siglip_256.v2_webli",
    "v2_so400m_16_384": "vit_so400m_patch16_siglip_384.v2_webli",
    "v2_so400m_16_512": "vit_so400m_patch16_siglip_512.v2_webli",
    "v2_g16_256": "vit_giantopt_patch16_siglip_256.v2_webli",
    "v2_g16_384": "vit_giantopt_patch16_siglip_384.v2_webli",
    "v1_b16_224": "vit_base_patch16_siglip_224.webli",
    "v1_b16_256": "vit_base_patch16_siglip_256.webli",
    "v1_b16_384": "vit_base_patch16_siglip_384.webli",
    "v1_b16_512": "vit_base_patch16_siglip_512.webli",
    "v1_l16_256": "vit_large_patch16_siglip_256.webli",
    "v1_l16_384": "vit_large_patch16_siglip_384.webli",
    "v1_so400m_14_224": "vit_so400m_patch14_siglip_224.webli",
    "v1_so400m_14_378": "vit_so400m_patch14_siglip_378.webli",
    "v1_so400m_14_384": "vit_so400m_patch14_siglip_384.webli",
}

DINOv2Variant = Literal["s14", "b14", "l14", "g14", "s14_reg4", "b14_reg4", "l14_reg4", "g14_reg4"]

DINOV2_NAMES: dict[DINOv2Variant, str] = {
    "s14": "vit_small_patch14_dinov2.lvd142m",
    "b14": "vit_base_patch14_dinov2.lvd142m",
    "l14": "vit_large_patch14_dinov2.lvd142m",
    "g14": "vit_giant_patch14_dinov2.lvd142m",
    "s14_reg4": "vit_small_patch14_reg4_dinov2.lvd142m",
    "b14_reg4": "vit_base_patch14_reg4_dinov2.lvd142m",
    "l14_reg4": "vit_large_patch14_reg4_dinov2.lvd142m",
    "g14_reg4": "vit_giant_patch14_reg4_dinov2.lvd142m",
}

InternViTVariant = Literal["300m", "300m_v2_5"]

INTERNVIT_NAMES: dict[InternViTVariant, str] = {
    "300m": "vit_intern300m_patch14_448.ogvl_dist",
    "300m_v2_5": "vit_intern300m_patch14_448.ogvl_2pt5",
}

DINOv3Variant = Literal["s16", "s16_plus", "b16", "l16", "l16_sat", "h16_plus", "7b16", "7b16_sat"]

DINOV3_NAMES: dict[DINOv3Variant, str] = {
    "s16": "vit_small_patch16_dinov3.lvd1689m",
    "s16_plus": "vit_small_plus_patch16_dinov3.lvd1689m",
    "b16": "vit_base_patch16_dinov3.lvd1689m",
    "l16": "vit_large_patch16_dinov3.lvd1689m",
    "l16_sat": "vit_large_patch16_dinov3.sat493m",
    "h16_plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "7b16": "vit_7b_patch16_dinov3.lvd1689m",
    "7b16_sat": "vit_7b_patch16_dinov3.sat493m",
}


class CLIP(TimmEncoder):
    """CLIP image towers (OpenAI, arXiv 2103.00020; Apple's DFN, arXiv 2309.17425; LAION's OpenCLIP); one class token.

    As `CLIPVisionModel` of transformers: position embeddings are resampled without antialiasing.

    Args:
        variant: size, patch and, where it is not 224, image size; then who trained it.
        **timm: the arguments of `TimmEncoder` except `name`.
    """

    def __init__(self, variant: CLIPVariant = "l14_openai", **timm: Any) -> None:
        super().__init__(_timm_name("CLIP", variant, CLIP_NAMES), **timm)
        self.record_defaults(TimmEncoder)

    @classmethod
    def reference_defaults(cls, name: str) -> dict[str, Any]:
        return {"pos_embed_antialias": False}


class SigLIP(TimmEncoder):
    """SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786) image towers; no class token.

    As `SiglipVisionModel` of transformers: the tanh approximation of GELU, which timm has in some of these towers only,
    and position embeddings resampled without antialiasing.

    Args:
        variant: version, size, patch and image size.
        **timm: the arguments of `TimmEncoder` except `name`.
    """

    def __init__(self, variant: SigLIPVariant = "v2_so400m_14_378", **timm: Any) -> None:
        super().__init__(_timm_name("SigLIP", variant, SIGLIP_NAMES), **timm)
        self.record_defaults(TimmEncoder)

    @classmethod
    def reference_defaults(cls, name: str) -> dict[str, Any]:
        return {"pos_embed_antialias": False, "activation": "gelu_tanh"}


class DINOv2(TimmEncoder):
    """DINOv2 (arXiv 2304.07193): a class token, and with `_reg4` four registers (arXiv 2309.16588).

    As `Dinov2Model` and `Dinov2WithRegistersModel` of transformers: position embeddings are resampled without
    antialiasing, and with registers with it.

    Args:
        variant: size and patch.
        **timm: the arguments of `TimmEncoder` except `name`.
    """

    def __init__(self, variant: DINOv2Variant = "l14", **timm: Any) -> None:
        super().__init__(_timm_name("DINOv2", variant, DINOV2_NAMES), **timm)
        self.record_defaults(TimmEncoder)

    @classmethod
    def reference_defaults(cls, name: str) -> dict[str, Any]:
        return {"pos_embed_antialias": "_reg4_" in name}


class InternViT(TimmEncoder):
    """InternViT-300M-448px (arXiv 2404.16821, 2412.05271): a class token, and no norm after the last block.

    As `InternVLVisionModel` of transformers: position embeddings are resampled without antialiasing.

    Args:
        variant: the first release, distilled from InternViT-6B, or version 2.5.
        **timm: the arguments of `TimmEncoder` except `name`.
    """

    def __init__(self, variant: InternViTVariant = "300m_v2_5", **timm: Any) -> None:
        super().__init__(_timm_name("InternViT", variant, INTERNVIT_NAMES), **timm)
        self.record_defaults(TimmEncoder)

    @classmethod
    def reference_defaults(cls, name: str) -> dict[str, Any]:
        return {"pos_embed_antialias": False}


class DINOv3(TimmEncoder):
    """DINOv3 (arXiv 2508.10104): rotary position embedding, a class token and four registers.

    As `DINOv3ViTModel` of transformers: positions are computed for every grid, and nothing is resampled.

    Args:
        variant: size and patch; `_sat` for the weights trained on satellite images.
        **timm: the arguments of `TimmEncoder` except `name`.
    """

    def __init__(self, variant: DINOv3Variant = "l16", **timm: Any) -> None:
        super().__init__(_timm_name("DINOv3", variant, DINOV3_NAMES), **timm)
        self.record_defaults(TimmEncoder)


def _timm_name(family: str, variant: str, names: Mapping[Any, str]) -> str:
    if variant not in names:
        raise ValueError(f"{family} has no variant {variant!r}; its variants are {', '.join(names)}")
    return names[variant]
