"""What deterministic decoders share that are trained on the distance of pixels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.specs import LatentSpec
from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.shortcut import LinearShortcut
from uniflow.layers.precision import full_precision, without_autocast

_DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}


class DirectDecoder(PixelDecoder):
    """Base class of deterministic decoders. A subclass implements `predict`.

    Args:
        latent: spec of the latents.
        loss: "l1", mean absolute error, or "l2", mean squared error, of pixels mapped to [-1, 1].
        shortcut: whether to add a linear path from each latent to the pixels of its patch, which starts at zero.

    Raises:
        ValueError: for another loss.
    """

    def __init__(self, latent: LatentSpec, loss: Literal["l1", "l2"], shortcut: bool = False) -> None:
        super().__init__()
        if loss not in _DISTANCES:
            raise ValueError(f"{type(self).__name__}.loss must be one of {', '.join(_DISTANCES)}, got {loss!r}")
        self.spec = latent
        self.distance = loss
        self.shortcut: LinearShortcut | None = None
        if shortcut:
            self.shortcut = LinearShortcut(latent.channels, latent.patch_size, (0.5,) * 3, (0.5,) * 3)

    @abstractmethod
    def predict(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, h * patch_size, w * patch_size), nominally in [-1, 1]."""

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """`{"l1": mean absolute error}` or `{"l2": mean squared error}` on pixels mapped to [-1, 1]."""
        return self.loss_and_estimate(latents, images)[0]

    def loss_and_estimate(self, latents: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`loss`, and the images that it judged."""
        pixels = self._prediction(latents)
        with without_autocast(images.device):
            loss = _DISTANCES[self.distance](pixels, (images * 2 - 1).to(pixels.dtype))
        return {self.distance: loss}, pixels * 0.5 + 0.5

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._prediction(latents) * 0.5 + 0.5

    def _prediction(self, latents: Tensor) -> Tensor:
        """`predict` in at least float32, and the linear path if there is one."""
        pixels = self.predict(latents)
        pixels = full_precision(pixels)
        return pixels if self.shortcut is None else pixels + self.shortcut.image(latents)
