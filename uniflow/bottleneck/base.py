"""The door of every bottleneck: the last hidden state -> latents."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from uniflow.part import Part
from uniflow.specs import LatentSpec


class Bottleneck(Part):
    """Base class of bottlenecks. A subclass takes the `EncoderSpec` first and sets `spec` in its constructor."""

    spec: LatentSpec

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compress the last feature map.

        Args:
            features: patch tokens of the last block as an image, (B, D, h, w).

        Returns:
            The latents (B, C, h', w'), and auxiliary losses by name (scalars that are added to the training loss).
        """
