"""Scores of semantic segmentation over a whole set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class SegmentationScores(MulticlassConfusionMatrix):
    """Mean intersection over union, mean accuracy and pixel accuracy, from one confusion matrix of all pixels.

    Pixels whose label is `ignore_index` count nowhere, whatever is predicted there. As in mmsegmentation, classes are
    averaged over the set and not over images: the IoU of a class that is neither in the labels nor predicted is nan,
    and so is the accuracy of a class that is not in the labels; both are left out of the means. A class that is
    predicted where it never is has IoU 0.

    Args:
        num_classes: number of classes K.
        ignore_index: label of pixels without a class; not one of the classes.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """`miou`, `mean_accuracy` and `pixel_accuracy`, each in [0, 1], or nan if no pixel had a label."""
        matrix = self._matrix()
        return {
            "miou": self.iou().nanmean(),
            "mean_accuracy": (matrix.diagonal() / matrix.sum(dim=1)).nanmean(),
            "pixel_accuracy": matrix.diagonal().sum() / matrix.sum(),
        }

    def iou(self) -> Tensor:
        """Intersection over union of each class, (K,); nan for an absent one."""
        matrix = self._matrix()
        right = matrix.diagonal()
        return right / (matrix.sum(dim=0) + matrix.sum(dim=1) - right)

    def rows(self, names: list[str] | None = None) -> list[dict[str, Any]]:
        """One row a class: its name or number, IoU, accuracy and number of pixels. Call where states are in sync."""
        matrix, iou = self._matrix(), self.iou()
        accuracy = matrix.diagonal() / matrix.sum(dim=1)
        numbers = zip(iou.tolist(), accuracy.tolist(), matrix.sum(dim=1).tolist(), strict=True)
        return [
            {"class": names[k] if names else k, "iou": one, "accuracy": two, "pixels": int(pixels)}
            for k, (one, two, pixels) in enumerate(numbers)
        ]

    def _matrix(self) -> Tensor:
        matrix: Tensor = self.confmat
        return matrix.to(torch.float32 if matrix.device.type == "mps" else torch.float64)
