"""A convolutional decoder: residual blocks between upsamplings, up to the pixels."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import LatentSpec
from uniflow.decoders.direct import DirectDecoder


class ConvDecoder(DirectDecoder):
    """Convolutional decoder in the manner of VQGAN's (arXiv 2012.09841), kept light: no attention.

    A 3 x 3 convolution, then for each prime factor of the patch size, the largest first, residual blocks and an
    upsampling by that factor, then residual blocks at full size, norm and a 3 x 3 convolution to the pixels. Channels
    halve with each upsampling. Convolutions cross patch borders at pixel resolution, which patch-wise heads do not.

    Args:
        latent: spec of the latents.
        width: channels at the latents' grid.
        min_width: channels are not halved below this.
        depth: residual blocks before each upsampling and after the last.
        groups: groups of the group norms; divides the channels of every stage.
        loss: "l1" or "l2", on pixels mapped to [-1, 1].
        shortcut: add a linear path from each latent to the pixels of its patch, which starts at zero. The task's
            `start: regression` writes its solution there.

    Raises:
        ValueError: for a `min_width` above `width`, groups that do not divide the channels of a stage, a depth below
            1, or another loss.
    """

    def __init__(
        self,
        latent: LatentSpec,
        width: PositiveInt = 512,
        min_width: PositiveInt = 64,
        depth: PositiveInt = 2,
        groups: PositiveInt = 32,
        loss: Literal["l1", "l2"] = "l1",
        shortcut: bool = False,
    ) -> None:
        super().__init__(latent, loss, shortcut)
        if min_width > width:
            raise ValueError(f"ConvDecoder.min_width must be at most width = {width}, got {min_width}")
        factors = prime_factors(latent.patch_size)
        widths = [max(width // 2**stage, min_width) for stage in range(len(factors) + 1)]
        if any(channels % groups for channels in widths):
            raise ValueError(f"ConvDecoder.groups must divide the channels of every stage, {widths}, got {groups}")
        layers: list[nn.Module] = [nn.Conv2d(latent.channels, width, 3, padding=1)]
        for factor, (inputs, outputs) in zip(factors, itertools.pairwise(widths), strict=True):
            layers += [ResidualBlock(inputs, groups) for _ in range(depth)]
            layers.append(Upsample(inputs, outputs, factor))
        layers += [ResidualBlock(widths[-1], groups) for _ in range(depth)]
        layers += [nn.GroupNorm(groups, widths[-1]), nn.SiLU(), zero_conv(widths[-1], 3)]
        self.layers = nn.Sequential(*layers)
        self.last_layer = f"layers.{len(layers) - 1}"

    def predict(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(GN(conv(SiLU(GN(x)))))), 3 x 3 convolutions; starts as the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            zero_conv(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        return x + self.layers(x)


class Upsample(nn.Sequential):
    """Sub-pixel upsampling (arXiv 1609.05158): a 1 x 1 convolution makes the `factor`^2 pixels of every position.

    It starts as nearest-neighbour upsampling (arXiv 1707.02937), so that no checkerboard has to be unlearned.
    """

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        convolution = nn.Conv2d(inputs, outputs * factor**2, 1)
        with torch.no_grad():
            for parameter in convolution.parameters():
                parameter.copy_(parameter[:outputs].repeat_interleave(factor**2, dim=0))
        super().__init__(convolution, nn.PixelShuffle(factor))


def prime_factors(number: int) -> list[int]:
    """Prime factors of a positive number, the largest first; none of 1."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors[::-1]


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3 x 3 convolution that starts as zero: a residual branch as nothing, the output as mid-grey."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
