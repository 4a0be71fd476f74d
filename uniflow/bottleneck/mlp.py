"""The paper's bottleneck."""

from __future__ import annotations

from torch import Tensor

from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.specs import EncoderSpec


class MLPBottleneck(ProjectedBottleneck):
    """The paper's projection: Linear, GELU, Linear on each patch token (arXiv 2510.10575, section 3).

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        merge: merge squares of so many by so many neighbouring tokens into one latent.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, encoder: EncoderSpec, channels: int = 64, merge: int = 1) -> None:
        super().__init__(encoder, channels, merge)

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.project(features).permute(0, 3, 1, 2), {}
