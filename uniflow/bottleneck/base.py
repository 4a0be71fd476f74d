"""Base class of bottlenecks: hidden states -> latents."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from torch import Tensor

from uniflow.core.part import Part
from uniflow.core.specs import EncoderOutput, LatentSpec
from uniflow.layers.over_time import Memory


class Bottleneck(Part):
    """Base class of bottlenecks. A subclass takes the `EncoderSpec` first and sets `spec` in its constructor.

    A discrete one also sets the two numbers below, and implements `indices` and `from_indices`; for generators of codes
    `to_indices`, too.

    Attributes:
        spec: channels and patch size of the latents.
        codebook_size: entries of each codebook; None if the latents are continuous.
        num_codebooks: codebooks K, so indices of one latent; None if the latents are continuous.
        frames_per_latent: frames of a clip that become one latent, but for the first frame, which has its own.
        start_scale: standard deviation of the latents, before any quantisation, that a regression start aims at.
    """

    spec: LatentSpec
    codebook_size: int | None = None
    num_codebooks: int | None = None
    frames_per_latent: int = 1
    start_scale: ClassVar[float] = 1.0
    entry_points: ClassVar[tuple[str, ...]] = ("indices", "from_indices", "to_indices", "tokens", "to_frames")

    @abstractmethod
    def forward(self, output: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Compress what the encoder gave.

        Args:
            output: the hidden states of all blocks on a grid of h x w patch tokens; those of the last block as an image
                (B, D, h, w) are `output.feature_map()`.

        Returns:
            The latents (B, C, h', w'), and auxiliary losses by name (scalars that are added to the training loss).
        """

    def over_time(self, frames: int, memory: Memory | None = None) -> AbstractContextManager[None]:
        """While the result is entered, a batch is one of clips, for a bottleneck with several `frames_per_latent`.

        Args:
            frames: T: a batch of B T images is that of B clips, clip after clip; 1 are images.
            memory: a dict, empty before a clip's first frames, for a clip that comes piece by piece.
        """
        return nullcontext()

    def to_frames(self, latents: Tensor) -> Tensor:
        """The latents of a batch as a decoder takes them, one for each frame; by default they are so already.

        Args:
            latents: what `forward` gave, (B n, C, h', w').

        Returns:
            (B T, C, h', w'), of the same type.

        Raises:
            ValueError: if these are not the latents of whole clips.
        """
        return latents

    def indices(self, output: EncoderOutput) -> Tensor:
        """The codebook entries that stand for what the encoder gave. Changes nothing, not even in training mode.

        Args:
            output: as for `forward`.

        Returns:
            Indices from 0 to codebook_size - 1, int64, (B, h', w', K), also for a single codebook.

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

    def to_indices(self, latents: Tensor) -> Tensor:
        """The inverse of `from_indices`, for generators of codes.

        Args:
            latents: (B, C, h', w'), codes up to the rounding of a file that they were kept in, such as float16.

        Returns:
            The indices whose latents are nearest to these, int64, (B, h', w', K).

        Raises:
            ValueError: if the bottleneck is continuous, or its codes do not say their indices.
        """
        raise ValueError(self._no_codes())

    def tokens(self, output: EncoderOutput) -> Tensor:
        """What a linear path to the latents would read, (B, h', w', F).

        A bottleneck with such a path overrides this and `linear_start`; `start: regression` of the task needs them.

        Args:
            output: as for `forward`.

        Raises:
            ValueError: if there is no linear path.
        """
        raise ValueError(self._no_shortcut())

    def linear_start(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """The parameters with which the latents are `tokens(output) @ weight.T + bias`, before any quantisation.

        Args:
            weight: (C, F).
            bias: (C,).

        Returns:
            Values by name in the state dict; what is not named keeps its value.

        Raises:
            ValueError: if there is no linear path.
        """
        raise ValueError(self._no_shortcut())

    def check_linear_start(self) -> None:
        """Do nothing if there is a linear path; override this if it is not called `shortcut`.

        Raises:
            ValueError: if there is none.
        """
        if getattr(self, "shortcut", None) is None:
            raise ValueError(self._no_shortcut())

    @property
    def layers_read(self) -> tuple[int, ...] | None:
        """The hidden states that `forward` reads, 0 = first block, the number of blocks = the embeddings; None: any."""
        return None

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has to be called before training."""
        return False

    def calibrate(self, means: Tensor, stds: Tensor) -> None:
        """Take statistics of the encoder's hidden states on training images; ignored by default.

        Args:
            means: of each channel of all L layers, and of the embeddings if there are any, (L + 1, D).
            stds: standard deviation of the values of each around those means, (L + 1,).
        """

    def _no_shortcut(self) -> str:
        return f"{type(self).__name__} has no linear path to start from: set its shortcut to true"

    def _no_codes(self) -> str:
        return (
            f"{type(self).__name__} is continuous and has no codebook; "
            "discrete are FSQBottleneck, VQBottleneck and MultiVQBottleneck"
        )
