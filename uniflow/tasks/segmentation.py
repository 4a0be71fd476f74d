"""Semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import FeatureSpec
from uniflow.features import FeatureSource
from uniflow.heads import SegmentationHead
from uniflow.metrics.segmentation import SegmentationScores
from uniflow.tasks.dense import DenseTask
from uniflow.training.trainer import data_of

Window = tuple[slice, slice]


class SegmentationTask(DenseTask):
    """Trains segmentation heads on the features of one source.

    Logs `val/miou`, `val/mean_accuracy` and `val/pixel_accuracy`, and the same as `test/...`, of all pixels of the
    split and all processes (`SegmentationScores`). After a test `RUN/test_classes.csv` has a row for each class.

    Batches have "image" (B, 3, H, W) and "mask" (B, H', W'), which may have another size: predictions are resized to
    it.

    Args:
        source: makes the source of the features.
        heads: make the heads, each from the spec of the features.
        crop: side of the square windows, in pixels, by which validation and test see a larger image; null sees it
            whole.
        stride: step from one window to the next; where windows overlap, their logits are averaged.
        tune_source: whether the source is trained too.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.

    Raises:
        ValueError: if windows would leave gaps, or there are no heads.
    """

    monitor = ("val/miou", "max")

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        heads: Sequence[Callable[[FeatureSpec], SegmentationHead]],
        crop: PositiveInt | None = 512,
        stride: PositiveInt = 341,
        tune_source: bool = False,
        **task: Any,
    ) -> None:
        super().__init__(source=source, heads=heads, tune_source=tune_source, **task)
        if crop is not None and stride > crop:
            raise ValueError(
                f"{type(self).__name__}: stride {stride} leaves gaps between windows of crop {crop}; "
                f"give {crop} or less"
            )
        self.crop, self.stride = crop, stride
        self._classes: dict[str, list[dict[str, Any]]] = {}

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of each head, the mean over the windows that see a pixel."""
        height, width = images.shape[-2:]
        if self.crop is None or max(height, width) <= self.crop:
            return self.maps(images)
        sums: dict[str, Tensor] = {}
        seen = torch.zeros(height, width, device=images.device)
        for window in windows(height, width, self.crop, self.stride):
            seen[window] += 1
            for name, logits in self.maps(images[..., *window]).items():
                whole = sums.setdefault(name, logits.new_zeros(*logits.shape[:2], height, width))
                whole[..., *window] += logits
        return {name: whole / seen for name, whole in sums.items()}

    def settings(self) -> dict[str, Any]:
        heads = [(head.num_classes, head.ignore_index) for _, head in self.map_heads()]
        return {"format": 1, "windows": [self.crop, self.stride], "classes_and_ignored": heads}

    def report_tables(self) -> dict[str, list[dict[str, Any]]]:
        """IoU, accuracy and number of pixels of each class."""
        return self._classes

    def _log_evaluation(self, stage: Literal["val", "test"]) -> None:
        if stage == "test":
            names = getattr(data_of(self.trainer), "mask_names", None)
            for name, head in self.map_heads():
                scores = self._metrics[name]["scores"]
                if isinstance(scores, SegmentationScores):  # a head may count otherwise
                    table = "classes" if name == head.name else f"{name}_classes"
                    with scores.sync_context():
                        self._classes[table] = scores.rows(names)
        super()._log_evaluation(stage)


def windows(height: int, width: int, crop: int, stride: int) -> Iterator[Window]:
    """Rows and columns of the windows over an image: `crop` pixels a side, every `stride` pixels.

    As in mmsegmentation the last ones end at the image's edge, so none is smaller than `crop`, but where the image is.
    """
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            yield slice(top, min(top + crop, height)), slice(left, min(left + crop, width))


def _starts(length: int, crop: int, stride: int) -> list[int]:
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(0, min(number * stride, length - crop)) for number in range(count)]
