"""The paper's bottleneck."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import EncoderOutput, EncoderSpec


class MLPBottleneck(ProjectedBottleneck):
    """The paper's projection: Linear, GELU, Linear on each patch token (arXiv 2510.10575, section 3).

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: if a number is below 1, or there is no such layer.
    """

    def __init__(self, encoder: EncoderSpec, channels: PositiveInt = 64, merge: PositiveInt = 1, **reads: Any) -> None:
        super().__init__(encoder, channels, merge, **reads)
        self.record_defaults(ProjectedBottleneck)

    def forward(self, output: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        return self.project(output).permute(0, 3, 1, 2), {}
