"""Latents that are codes: between them and their indices, without an image."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from uniflow.bottleneck import Bottleneck
from uniflow.core.specs import LatentSpec
from uniflow.tokenizer.latent_statistics import NormalizedLatents


class CodedLatents(NormalizedLatents):
    """What a tokenizer knows about the codes of its latents, if its bottleneck is discrete."""

    bottleneck: Bottleneck

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return self.bottleneck.spec.channels

    @property
    def codebook_size(self) -> int | None:
        """Entries of each codebook; None if the latents are continuous."""
        return self.bottleneck.codebook_size

    @property
    def latent_spec(self) -> LatentSpec:
        """Spec of the latents for a generator, with the bottleneck's codebooks if it is discrete."""
        part = self.bottleneck
        return replace(part.spec, codebook_size=part.codebook_size, num_codebooks=part.num_codebooks)

    def to_indices(self, latents: Tensor, *, normalized: bool = False) -> Tensor:
        """Latents (B, C, h, w), as `encode` gave them -> their indices, int64, (B, h, w, K).

        Args:
            latents: codes; they may have been rounded, to float16 for example: the nearest code counts.
            normalized: whether they are those of `encode(normalize=True)`.

        Raises:
            ValueError: if the bottleneck is continuous, or its codes do not say their indices.
        """
        return self.bottleneck.to_indices(self.denormalize_latents(latents) if normalized else latents)

    def from_indices(self, indices: Tensor, *, normalize: bool = False) -> Tensor:
        """Indices (B, h, w, K) -> their latents (B, C, h, w), those of `encode` with the same `normalize`.

        Raises:
            ValueError: if the bottleneck is continuous, or for indices that do not fit.
        """
        latents = self.bottleneck.from_indices(indices)
        return self.normalize_latents(latents) if normalize else latents
