"""The images that are reconstructed worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from uniflow.core.pixels import to_uint8, to_unit_range
from uniflow.pictures.drawing import captioned_sheet, error_map

SHOWN = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}"}
GAIN = 4  # of the differences shown
SIDE = 256  # of an image shown, in pixels


@dataclass
class _Pair:
    row: Mapping[str, Any]
    original: Tensor
    reconstruction: Tensor


class WorstImages:
    """The images with the lowest values of some metrics, of all that are fed; holds no more than these.

    Which they are does not depend on batches and order: of equal values, that of the first name counts.

    Args:
        count: how many to keep for each metric.
        metrics: columns of the rows; higher is better in each.

    Raises:
        ValueError: if `count` is below 1.
    """

    def __init__(self, count: int, metrics: Sequence[str]) -> None:
        if count < 1:
            raise ValueError(f"a gallery needs at least 1 image, got {count}")
        self.count = count
        self._pairs: dict[str, list[_Pair]] = {metric: [] for metric in metrics}

    def update(self, rows: Sequence[Mapping[str, Any]], originals: Tensor, reconstructions: Tensor) -> None:
        """Feed a batch: its rows of `Evaluation.rows`, and its images (B, 3, H, W), uint8 or float in [0, 1]."""
        images = zip(_bytes(originals), _bytes(reconstructions), strict=True)
        # Copies, since a view would keep the whole batch.
        batch = [_Pair(row, *(image.clone() for image in pair)) for row, pair in zip(rows, images, strict=True)]
        for metric, kept in self._pairs.items():
            self._pairs[metric] = sorted([*kept, *batch], key=lambda pair: _rank(pair, metric))[: self.count]

    def rows(self, metric: str) -> list[Mapping[str, Any]]:
        """The rows of the worst images by `metric`, worst first."""
        return [pair.row for pair in self._pairs[metric]]

    def picture(self) -> Image.Image | None:
        """The worst by each metric side by side: original, reconstruction, difference; None if there are no images."""
        sheets = [_sheet(metric, pairs) for metric, pairs in self._pairs.items() if pairs]
        if not sheets:
            return None
        picture = Image.new("RGB", (sum(s.width for s in sheets), max(s.height for s in sheets)), "white")
        left = 0
        for sheet in sheets:
            picture.paste(sheet, (left, 0))
            left += sheet.width
        return picture


def _rank(pair: _Pair, metric: str) -> tuple[float, str]:
    value = pair.row[metric]
    return (-math.inf if math.isnan(value) else value, pair.row["image"])  # nothing is worse than no number


def _bytes(images: Tensor) -> Tensor:
    images = images.detach()
    return to_uint8(images).cpu()


def _sheet(metric: str, pairs: Sequence[_Pair]) -> Image.Image:
    shown = sorted(SHOWN, key=lambda key: key != metric)
    rows = []
    for rank, pair in enumerate(pairs, start=1):
        original, reconstruction = to_unit_range(pair.original), to_unit_range(pair.reconstruction)
        values = ", ".join(SHOWN[key].format(pair.row[key]) for key in shown if key in pair.row)
        rows.append(
            [
                (f"{rank}. {pair.row['image']}", original),
                (f"reconstruction\n{values}", reconstruction),
                (f"difference x {GAIN}", error_map(reconstruction, original, GAIN)),
            ]
        )
    return captioned_sheet(rows, SIDE, f"lowest {metric.upper()}")
