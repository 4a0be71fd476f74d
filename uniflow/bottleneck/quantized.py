"""What the discrete bottlenecks of this package share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.core.numbers import Int2, PositiveInt
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.layers.precision import full_precision


class QuantizedBottleneck(ProjectedBottleneck):
    """Base class of bottlenecks whose latents are entries of K codebooks, in at least float32.

    A subclass implements the three steps below on tokens with their channels last. In evaluation mode `forward` looks
    up what `nearest` finds, so `from_indices(indices(output))` are its latents, bit for bit.

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        codebook_size: entries of each codebook.
        num_codebooks: codebooks K.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: if a number is below 1, or a codebook has fewer than 2 entries.
    """

    codebook_size: int
    num_codebooks: int
    # The last hidden state of a ViT, before its final norm, can be of any size: a bound on it would saturate, and
    # distances and their loss would scale with the encoder.
    normalize_last: ClassVar[bool] = True

    def __init__(
        self,
        encoder: EncoderSpec,
        channels: PositiveInt,
        codebook_size: Int2,
        num_codebooks: PositiveInt,
        merge: PositiveInt,
        **reads: Any,
    ) -> None:
        super().__init__(encoder, channels, merge, **reads)
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks

    @abstractmethod
    def quantize(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of training: the codes of `tokens`, with a gradient to them, and auxiliary losses.

        Args:
            tokens: the projection's output (B, h, w, C), float32 or float64.

        Returns:
            Codes of the same shape, and scalars by name.
        """

    @abstractmethod
    def nearest(self, tokens: Tensor) -> Tensor:
        """Tokens (B, h, w, C), float32 or float64 -> indices of their codes, int64, (B, h, w, K). Changes nothing."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w, K) -> codes (B, h, w, C)."""

    def forward(self, output: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self._projected(output)
        codes, losses = self.quantize(tokens) if self.training else (self.lookup(self.nearest(tokens)), {})
        return self._latents(codes), losses

    def indices(self, output: EncoderOutput) -> Tensor:
        return self.nearest(self._projected(output))

    def from_indices(self, indices: Tensor) -> Tensor:
        if indices.ndim != 4 or indices.shape[-1] != self.num_codebooks:
            raise ValueError(f"indices must be (B, h, w, {self.num_codebooks}), got {tuple(indices.shape)}")
        if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
            raise ValueError(f"indices must be integers, got {indices.dtype}")
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < self.codebook_size):
            raise ValueError(
                f"indices must lie between 0 and {self.codebook_size - 1}, got {int(indices.min())} to "
                f"{int(indices.max())}"
            )
        return self._latents(self.lookup(indices.long()))

    def to_indices(self, latents: Tensor) -> Tensor:
        """What `nearest` finds of the codes themselves; override it where a code is not the nearest to itself."""
        return self.nearest(full_precision(latents).permute(0, 2, 3, 1))

    def _projected(self, output: EncoderOutput) -> Tensor:
        tokens = self.project(output)
        return full_precision(tokens)

    def _latents(self, codes: Tensor) -> Tensor:
        return codes.permute(0, 3, 1, 2).to(self.fc2.weight.dtype)


def import_library(user: str) -> Any:
    """The package vector-quantize-pytorch; its import takes seconds, so only those who use it wait for it.

    Raises:
        ImportError: if it is not installed; `user` is the class that needs it.
    """
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ImportError(f"{user} needs vector-quantize-pytorch: pip install 'uniflow[vq]'") from error
    return vector_quantize_pytorch
