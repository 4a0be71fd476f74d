"""torchvision's anchors and poolers for maps of given strides.

torchvision guesses the strides from the sizes of image and maps, in whole pixels and for poolers in powers of two. With
patches of 14 pixels (strides 3.5, 7, ...) or an odd number of patches both guesses miss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from uniflow.core.numbers import CheckedNumbers, PositiveFloat, PositiveInt


class CellAnchors(CheckedNumbers, AnchorGenerator):
    """Anchors around the centre of each cell of some maps.

    Args:
        strides: side of a cell of each map in pixels.
        size: side of an anchor, in strides.
        aspect_ratios: height / width of the anchors of a cell, which have the same area.
    """

    def __init__(
        self,
        strides: Sequence[PositiveFloat],
        size: PositiveFloat = 1.0,
        aspect_ratios: Sequence[PositiveFloat] = (1.0,),
    ) -> None:
        sizes = tuple((size * stride,) for stride in strides)
        super().__init__(sizes, (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Anchors (n, 4) around 0, not rounded to pixels: those of a stride of 1 would vanish."""
        ratios = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.tensor(scales, dtype=dtype, device=device)
        width, height = (sides / ratios[:, None]).flatten() / 2, (sides * ratios[:, None]).flatten() / 2
        return torch.stack([-width, -height, width, height], dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the anchors of all maps (B, c, h, w), (n, 4) in pixels, row by row."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        anchors = []
        for feature_map, stride, around in zip(feature_maps, self.strides, self.cell_anchors, strict=True):
            rows, columns = (torch.arange(n, device=around.device) + 0.5 for n in feature_map.shape[-2:])
            y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).to(around.dtype)
            anchors.append((centres + around).reshape(-1, 4))
        return [torch.cat(anchors)] * len(image_list.image_sizes)


def pooler(strides: Sequence[float], cells: PositiveInt) -> MultiScaleRoIAlign:
    """Reads `cells` x `cells` features of a box from the map, "0", "1", ..., whose stride fits its size.

    As in arXiv 1612.03144, a box with sides of 224 pixels is read at stride 16: one cell is 1/14 of the box.
    """
    layer = MultiScaleRoIAlign([str(level) for level in range(len(strides))], cells, sampling_ratio=2)
    layer.scales = [1 / stride for stride in strides]
    layer.map_levels = LevelMapper(0, len(strides) - 1, canonical_scale=14 * strides[0], canonical_level=0)
    return layer
