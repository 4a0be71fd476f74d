"""The networks of a tokenizer's training step, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from uniflow.core.pixels import to_unit_range
from uniflow.tasks.base import Stage
from uniflow.tokenizer import Tokenizer


def tokenizer_stages(
    tokenizer: Tokenizer, pixel_losses: list[nn.Module], teacher: nn.Module, distills: bool, images: Tensor
) -> Iterator[Stage]:
    """Encoder, bottleneck, decoder, pixel losses and teacher on images (B, 3, H, W); see `Task.stages`.

    Args:
        tokenizer: in training.
        pixel_losses: each takes an estimate and images.
        teacher: the frozen encoder.
        distills: whether a training step runs the teacher.
        images: uint8 or float in [0, 1].
    """
    pixels, results = to_unit_range(images), dict[str, Any]()

    def encode() -> None:
        results["hidden"] = tokenizer.encoder(images)

    def compress() -> None:
        results["latents"] = tokenizer.bottleneck(results["hidden"])[0]

    yield Stage("encoder", [tokenizer.encoder], encode)
    yield Stage("bottleneck", [tokenizer.bottleneck], compress)
    yield Stage("decoder", [tokenizer.decoder], lambda: tokenizer.decoder.loss(results["latents"], pixels))
    if pixel_losses:
        yield Stage("pixel_losses", pixel_losses, lambda: [loss(pixels, pixels) for loss in pixel_losses])
    yield Stage("teacher", [teacher], lambda: teacher(images), in_graph=False, in_training=distills)
