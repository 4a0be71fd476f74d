"""The simple feature pyramid of ViTDet: maps of several strides from the one map of a plain vision transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from uniflow.core.numbers import CheckedNumbers, PositiveFloat, PositiveInt

LEAST_WIDTH = 64  # of maps that are made finer: latents have few channels


class SimplePyramid(CheckedNumbers, nn.Module):
    """Maps of several strides, each made from the same feature map alone (arXiv 2203.16527, section 3).

    A finer map comes from transposed convolutions of stride 2, which halve the width as long as at least 64 channels
    (or `channels`, if that is less) are left; a coarser one from max pooling. A 1x1 and a 3x3 convolution follow, each
    with a LayerNorm over channels.

    Attributes:
        scales: cells of each map along one patch.
        channels: of each map.

    Args:
        width: channels of the feature map.
        channels: channels of each map.
        scales: cells of each map along one patch, powers of two, finest first. 4, 2, 1, 0.5 with patches of 16 pixels
            give the strides 4, 8, 16, 32.

    Raises:
        ValueError: if `scales` is empty, holds another number than a power of two, or does not fall.
    """

    def __init__(
        self, width: PositiveInt, channels: PositiveInt = 256, scales: Sequence[PositiveFloat] = (4, 2, 1, 0.5)
    ) -> None:
        super().__init__()
        steps = [math.log2(scale) for scale in scales]
        if not steps or any(step != round(step) for step in steps) or steps != sorted(set(steps), reverse=True):
            raise ValueError(f"SimplePyramid.scales must be falling powers of two such as 4, 2, 1, 0.5, not {scales}")
        self.scales, self.channels = tuple(float(scale) for scale in scales), channels
        self.levels = nn.ModuleList(_level(width, channels, round(step)) for step in steps)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Maps (B, channels, ceil(h * scale), ceil(w * scale)), finest first, of features (B, width, h, w)."""
        return [level(features) for level in self.levels]


def _level(width: int, channels: int, steps: int) -> nn.Sequential:
    """Layers that make the map 2 ** `steps` times as fine."""
    layers: list[nn.Module] = []
    for step in range(steps):
        halved = max(width // 2, min(LEAST_WIDTH, channels))
        layers += [LayerNorm2d(width), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(width, halved, 2, stride=2))
        width = halved
    if steps < 0:  # the last cells of an odd grid count too
        layers.append(nn.MaxPool2d(2**-steps, ceil_mode=True))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)
