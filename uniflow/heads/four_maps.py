"""A pyramid of feature maps out of a plain ViT's, for heads of transformers that were made for one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from uniflow.core.specs import EncoderOutput

MapT = TypeVar("MapT")


def four_maps(head: str, maps: Sequence[MapT]) -> list[MapT]:
    """Four maps: the source's own, or its only one four times.

    Raises:
        ValueError: if there are neither 1 nor 4.
    """
    if len(maps) not in (1, 4):
        raise ValueError(f"{head} reads 1 or 4 layers of a source, which has {len(maps)}: set its layers")
    return list(maps) * (4 if len(maps) == 1 else 1)


def transformers_module(head: str, model: str) -> Any:
    """The module `transformers.models.MODEL`.

    Raises:
        ImportError: without transformers.
    """
    try:
        importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        return importlib.import_module(f"transformers.models.{model}")
    except ImportError as error:
        raise ImportError(f"{head} needs transformers: pip install 'uniflow[transformers]'") from error


class FourScales(nn.Module):
    """Feature maps of a ViT at 4, 2, 1 and 1/2 times the resolution of its patches, as for BEiT's (arXiv 2106.08254)
    UPerNet: two transposed convolutions, one, nothing, and a maximum.

    Args:
        head: name of the head that reads them, for errors.
        width: channels of the maps.
        layers: how many maps there are: 4, or 1 that is used four times.

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(self, head: str, width: int, layers: int) -> None:
        super().__init__()
        self.head = head
        four_maps(head, range(layers))
        finest = nn.Sequential(_doubled(width), nn.BatchNorm2d(width), nn.GELU(), _doubled(width))
        self.scales = nn.ModuleList([finest, _doubled(width), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])

    def forward(self, features: EncoderOutput) -> list[Tensor]:
        """Four maps, each (B, width, h, w), finest first."""
        maps = [features.feature_map(layer) for layer in range(len(features.hidden_states))]
        return [scale(one) for scale, one in zip(self.scales, four_maps(self.head, maps), strict=True)]


def _doubled(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
