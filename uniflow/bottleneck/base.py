"""The door of every bottleneck: the last hidden state -> latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from uniflow.part import Part
from uniflow.specs import LatentSpec


class Bottleneck(Part):
    """Base class of bottlenecks. A subclass takes the `EncoderSpec` first and sets `spec` in its constructor.

    A discrete one also sets the two numbers below, and implements `indices` and `from_indices`.

    Attributes:
        spec: channels and patch size of the latents.
        codebook_size: entries of each codebook; None if the latents are continuous.
        num_codebooks: codebooks K, so indices of one latent; None if the latents are continuous.
        entry_points: methods besides `forward` through which others use the parameters; sharding gathers them there.
    """

    spec: LatentSpec
    codebook_size: int | None = None
    num_codebooks: int | None = None
    entry_points: ClassVar[tuple[str, ...]] = ("indices", "from_indices")

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compress the last feature map.

        Args:
            features: patch tokens of the last block as an image, (B, D, h, w).

        Returns:
            The latents (B, C, h', w'), and auxiliary losses by name (scalars that are added to the training loss).
        """

    def indices(self, features: Tensor) -> Tensor:
        """The codebook entries that stand for a feature map. Changes nothing, in training mode neither.

        Args:
            features: as for `forward`.

        Returns:
            Indices from 0 to codebook_size - 1, int64, (B, h', w', K), for one codebook too.

        Raises:
            ValueError: if the bottleneck is continuous.
        """
        raise ValueError(self._no_codes())

    def from_indices(self, indices: Tensor) -> Tensor:
        """The latents that `forward` gives in evaluation mode where `indices` gives these.

        Args:
            indices: from 0 to codebook_size - 1, of any integer type, (B, h', w', K).

        Returns:
            Latents (B, C, h', w').

        Raises:
            ValueError: if the bottleneck is continuous, or the indices are misshapen or out of range.
        """
        raise ValueError(self._no_codes())

    def _no_codes(self) -> str:
        return (
            f"{type(self).__name__} is continuous and has no codebook; "
            "discrete are FSQBottleneck, VQBottleneck and MultiVQBottleneck"
        )
