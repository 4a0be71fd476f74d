"""The frozen original of the encoder."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from uniflow.encoders.base import EncoderOutput, VisionEncoder


class FrozenTeacher(nn.Module):
    """A copy of an encoder that stays as it is: no gradient, evaluation mode, and neither `train()` nor
    `requires_grad_()` on it or on a module that holds it can thaw it.

    Args:
        encoder: the pretrained encoder; it is copied.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return super().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> EncoderOutput:
        """Hidden states of `images` (B, 3, H, W), uint8 or float in [0, 1], without a graph."""
        return self.encoder(images)
