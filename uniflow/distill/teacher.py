"""The frozen original of the encoder."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.encoders.lora import plain_copy

# Layers whose weights autocast rounds to its type at every call, in whichever type they are stored.
ROUNDED = (nn.Linear, nn.Conv2d)


class FrozenTeacher(nn.Module):
    """A copy of an encoder that stays as it is: no gradient, evaluation mode, and neither `train()` nor
    `requires_grad_()` on it or on a module that holds it can thaw it.

    Args:
        encoder: the pretrained encoder; it is copied, without adapters; frozen weights beside adapters are shared.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = plain_copy(encoder)
        own = set(encoder.parameters())
        self._shares_weights = any(parameter in own for parameter in self.encoder.parameters())
        self.encoder.requires_grad_(False)
        self.train(False)
        self.rounded_to: torch.dtype | None = None

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return super().requires_grad_(False)

    def round_weights(self, dtype: torch.dtype) -> None:
        """Store the weights of linear and convolutional layers as autocast to `dtype` rounds them at every call.

        Under that autocast the results stay the same, bit for bit, at half the memory. Norms, layer scales, class
        tokens and position embeddings keep their type. There is no way back: from then on the teacher computes under
        autocast to `dtype` wherever it is called.

        Args:
            dtype: bfloat16 or float16, that of the autocast under which the teacher is called.

        Raises:
            ValueError: for another type, or if the weights have been rounded to the other one.
        """
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"the teacher's weights can be rounded to bfloat16 or float16, not {dtype}")
        if self.rounded_to not in (None, dtype):
            raise ValueError(f"the teacher's weights were rounded to {self.rounded_to}, they cannot become {dtype}")
        if self._shares_weights:  # with a student that has adapters: its weights stay exact, and take no memory here
            return
        for module in self.encoder.modules():
            if isinstance(module, ROUNDED):
                module.to(dtype)
        self.rounded_to = dtype

    @torch.no_grad()
    def forward(self, images: Tensor) -> EncoderOutput:
        """Hidden states of `images` (B, 3, H, W), uint8 or float in [0, 1], without a graph."""
        if self.rounded_to is None:
            return self.encoder(images)
        with torch.autocast(images.device.type, self.rounded_to):
            return self.encoder(images)
