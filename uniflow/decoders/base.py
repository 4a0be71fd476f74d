"""The door of every pixel decoder: latents in, pixels out. Nothing about flows here."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from uniflow.part import Part
from uniflow.specs import LatentSpec


class PixelDecoder(Part):
    """Base class of decoders. A subclass takes the `LatentSpec` first and sets `spec` in its constructor."""

    spec: LatentSpec

    @abstractmethod
    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Training losses by name, scalars; their sum is minimised.

        Args:
            latents: (B, C, h, w).
            images: the pixels to paint, float in [0, 1], (B, 3, h * patch_size, w * patch_size).
        """

    @abstractmethod
    def decode(
        self,
        latents: Tensor,
        *,
        steps: int = 1,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Paint the images.

        Args:
            latents: (B, C, h, w).
            steps: sampler steps; a decoder that paints in one go ignores it.
            noise: standard normal start (B, 3, H, W) in place of a drawn one; ignored by deterministic decoders.
            generator: source of the drawn noise.

        Returns:
            Images (B, 3, H, W), nominally in [0, 1], not clamped.
        """
