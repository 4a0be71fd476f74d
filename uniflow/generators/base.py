"""Base class of generators: conditions in, normalised latents out."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from uniflow.conditions import Conditioning
from uniflow.core.part import Part
from uniflow.core.specs import LatentSpec


class LatentGenerator(Part):
    """Base class of generators. A subclass takes the `LatentSpec` and the `ConditionSpec` first.

    Latents are normalised ones, (B, C, h, w): each channel has mean 0 and variance 1 over the training data.

    Attributes:
        latent: spec of the latents.
    """

    latent: LatentSpec
    entry_points: ClassVar[tuple[str, ...]] = ("loss", "validation_loss", "sample")

    @abstractmethod
    def loss(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Training losses by name, scalars; their sum is minimised."""

    @abstractmethod
    def validation_loss(
        self, latents: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        """The losses with given randomness, so that two evaluations of the same weights agree.

        Args:
            latents: (B, C, h, w).
            noise: standard normal, of the same shape.
            times: (B,), uniform in [0, 1].
            conditioning: of the B samples.
        """

    @abstractmethod
    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w) from standard normal noise of that shape, the same for the same noise.

        Args:
            noise: (B, C, h, w).
            conditioning: what the samples shall be.
            unconditional: what stands for no condition, for guidance.
            steps: sampler steps; None is the generator's own number.
            guidance: strength of guidance; 1 is none; None is the generator's own.
        """
