"""Base class of generators: conditions in, normalised latents out."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from uniflow.conditions import Conditioning
from uniflow.core.part import Part
from uniflow.core.specs import LatentSpec
from uniflow.tokenizer import Tokenizer


class LatentGenerator(Part):
    """Base class of generators. A subclass takes the `LatentSpec` and the `ConditionSpec` first.

    Latents are normalised ones, (B, C, h, w): each channel has mean 0 and variance 1 over the training data.

    Attributes:
        latent: spec of the latents.
        token_width: channels of the tokens that go through its `blocks`; None if it has no blocks.
        steps: sampler steps where none are given; None if there is no such choice.
        validation_times: times at which `validation_loss` is asked; one is enough where the loss has no time.
    """

    latent: LatentSpec
    token_width: int | None = None
    steps: int | None = None
    validation_times: ClassVar[tuple[float, ...]] = (0.1, 0.3, 0.5, 0.7, 0.9)
    entry_points: ClassVar[tuple[str, ...]] = ("loss", "validation_loss", "sample", "sample_autoguided")

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Called before anything else with the tokenizer whose latents these are, frozen; ignored by default.

        A generator of codes keeps it, outside of its own modules, and asks it for the indices of latents and back.

        Raises:
            ValueError: if its latents cannot be made.
        """

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

    def draw_codes(
        self, *, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None
    ) -> None:
        """Choose how `sample` draws codes, of a generator that does so; None leaves the generator's own.

        Args:
            temperature: above 0; the logits are divided by it.
            top_k: draw among this many of the likeliest codes; 0 is all.
            top_p: draw among the likeliest codes that together have this probability; 1 is all.

        Raises:
            ValueError: if the generator draws no codes, or a number is out of range.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{type(self).__name__} draws no codes: {wrong[0]} is not for it")
