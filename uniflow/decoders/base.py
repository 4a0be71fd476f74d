"""Base class of pixel decoders: latents in, pixels out. It knows nothing about flows."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from uniflow.core.part import Part
from uniflow.core.specs import LatentSpec
from uniflow.layers.grid import Window, cut
from uniflow.layers.over_time import Memory

if TYPE_CHECKING:
    from uniflow.decoders.shortcut import LinearShortcut


class PixelDecoder(Part):
    """Base class of decoders. A subclass takes the `LatentSpec` first and sets `spec` in its constructor.

    Attributes:
        spec: channels and patch size of the latents.
        shortcut: a linear path from latents to pixels, or None; optional.
        last_layer: name of the last layer beside the shortcut: if it is zero, only the shortcut's output is left.
    """

    spec: LatentSpec
    last_layer: str
    entry_points: ClassVar[tuple[str, ...]] = ("loss", "loss_and_estimate", "decode", "context", "decode_context")

    @abstractmethod
    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Training losses by name, scalars; their sum is minimised.

        Args:
            latents: (B, C, h, w).
            images: the true pixels, float in [0, 1], (B, 3, h * patch_size, w * patch_size).
        """

    def loss_and_estimate(self, latents: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Training losses, and a differentiable one-step estimate of the images that losses on pixels can judge.

        A decoder whose loss already predicts the images overrides this and saves the second pass.

        Args:
            latents: (B, C, h, w).
            images: as for `loss`.

        Returns:
            What `loss` gives, and the estimate (B, 3, H, W), nominally in [0, 1], not clamped, at least float32.
        """
        return self.loss(latents, images), self.decode(latents, steps=1)

    def linear_start(self, weight: Tensor, bias: Tensor, error: Tensor) -> dict[str, Tensor]:
        """The parameters and buffers with which one step gives the patches `latents @ weight.T + bias`.

        The task's `start: regression` needs it. A decoder without `shortcut` and `last_layer` may override it.

        Args:
            weight: (3 p^2, C), for pixels in [0, 1]; within a patch channel slowest, then row, then column.
            bias: (3 p^2,).
            error: mean squared error of that map for each pixel value of a patch, (3 p^2,).

        Returns:
            Values by name in the state dict; what is not named keeps its value.

        Raises:
            ValueError: if there is no linear path.
        """
        self.check_linear_start()
        shortcut: LinearShortcut = self.get_submodule("shortcut")  # type: ignore[assignment]
        values = {f"shortcut.{name}": value for name, value in shortcut.solution(weight, bias, error).items()}
        rest = self.get_submodule(self.last_layer).named_parameters()
        return values | {f"{self.last_layer}.{name}": weight.new_zeros(p.shape) for name, p in rest}

    def check_linear_start(self) -> None:
        """Do nothing if there is a linear path; override this if it is not called `shortcut`.

        Raises:
            ValueError: if there is none.
        """
        if getattr(self, "shortcut", None) is None:
            raise ValueError(f"{type(self).__name__} has no linear path to start from: set its shortcut to true")

    @property
    def temporal(self) -> bool:
        """Whether a clip's frames see the frames before them; of most decoders each is an image by itself."""
        return False

    def over_time(self, frames: int, memory: Memory | None = None) -> AbstractContextManager[None]:
        """While the result is entered, a batch is one of clips, for a decoder that is `temporal`.

        Args:
            frames: T: a batch of B T latents is that of B clips, clip after clip; 1 are images.
            memory: a dict, empty before a clip's first frames, for a clip that is decoded piece by piece.
        """
        return nullcontext()

    def draw_noise(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """The noise that `decode` draws for `latents` (B, C, h, w) when none is given.

        A decoder that draws noise overrides this, so that tiles can share one drawing.

        Args:
            latents: (B, C, h, w).
            generator: source of the noise.

        Returns:
            Standard normal (B, 3, H, W), at least float32; None for a deterministic decoder.
        """
        return None

    def context(self, latents: Tensor, window: Window | None = None) -> Tensor:
        """What decoding each patch needs to know, as an image.

        A decoder with one part that sees the whole image and another that decodes each patch by itself overrides this
        and `decode_context`. Tiled decoding can then run the first part on the whole image, or on one tile at a time
        with the tile's position.

        Args:
            latents: (B, C, h, w), of the whole image.
            window: the rows and columns to give the context of, as if no other latents were there; None is all.

        Returns:
            (B, K, h, w) for any K, of the window; the latents themselves by default.
        """
        return cut(latents, window)

    def decode_context(
        self,
        context: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode what `context` gave; `decode(latents)` is `decode_context(context(latents))`.

        Args:
            context: (B, K, h, w), what `context` gave, or a window cut from it.
            steps: as for `decode`.
            noise: as for `decode`, of the window's size.
            generator: as for `decode`.

        Returns:
            Images (B, 3, h * patch_size, w * patch_size), as `decode` gives them.
        """
        return self.decode(context, steps=steps, noise=noise, generator=generator)

    @abstractmethod
    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode latents to images.

        Args:
            latents: (B, C, h, w).
            steps: sampler steps; None is the decoder's own number. A decoder without a sampler ignores it.
            noise: standard normal start (B, 3, H, W) in place of a drawn one; ignored by deterministic decoders.
            generator: source of the drawn noise.

        Returns:
            Images (B, 3, H, W), nominally in [0, 1], not clamped.
        """
