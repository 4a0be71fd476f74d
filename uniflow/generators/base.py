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
    entry_points: ClassVar[tuple[str, ...]] = ("loss", "validation_loss", "sample", "sample_autoguided")

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

    def sample_autoguided(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        weak: LatentGenerator,
        weak_conditioning: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """As `sample`, with guidance away from a weaker generator of the same latents (arXiv 2406.02507).

        Args:
            noise: as for `sample`.
            conditioning: as for `sample`.
            weak: the weaker generator.
            weak_conditioning: what it is told about the same samples.
            steps: as for `sample`.
            guidance: as for `sample`.

        Raises:
            ValueError: if the generator cannot be guided so.
        """
        raise ValueError(f"{type(self).__name__} cannot be guided by a weaker generator")

    def guide_from(self, source: str) -> None:
        """Choose what the guidance of `sample` moves away from; "null", no condition, is what every generator can.

        Raises:
            ValueError: if the generator cannot be guided so.
        """
        if source != "null":
            raise ValueError(f"{type(self).__name__} is guided from null only, not from {source!r}")
