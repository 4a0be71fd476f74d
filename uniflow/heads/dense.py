"""Heads that predict values on a grid of cells, linearly from each patch token: masks, depth, colours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsolutePercentageError, MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from uniflow.core.numbers import Int2, NonNegativeFloat, PositiveInt
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.base import Head


class DenseHead(Head):
    """Base class of heads that predict values on a grid of cells inside each patch.

    Args:
        spec: of the features.
        channels: values per cell.
        cells: cells along each side of a patch; must divide the patch size.
        weight: factor on the loss.

    Raises:
        ValueError: if `cells` does not divide the patch size.
    """

    def __init__(self, spec: FeatureSpec, channels: PositiveInt, cells: PositiveInt, weight: NonNegativeFloat) -> None:
        super().__init__(weight)
        if spec.patch_size % cells:
            raise ValueError(f"{type(self).__name__}.cells must divide the patch size {spec.patch_size}, got {cells}")
        self.cell_size = spec.patch_size // cells
        self.predict = nn.Sequential(nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, channels * cells * cells))
        self.unfold = nn.PixelShuffle(cells)

    def forward(self, features: EncoderOutput) -> Tensor:
        """Predictions as an image of cells, (B, channels, rows, columns)."""
        values = self.predict(features.hidden_states[-1]).float()
        grid = values.transpose(1, 2).unflatten(2, features.grid)
        return self.unfold(grid)

    def pool(self, maps: Tensor) -> Tensor:
        """The mean of (B, c, H, W) over each cell, in float32."""
        return F.avg_pool2d(maps.float(), self.cell_size)


class MaskHead(DenseHead):
    """Semantic mask ("mask", int64 (B, H, W); 0 is background): each cell's shares of the classes, by cross entropy.

    Args:
        spec: of the features.
        num_classes: classes, the background included.
        cells: cells along each side of a patch.
        weight: factor on the loss.
        background_weight: factor on the background's part of the loss; below 1 the classes come first.
    """

    name = "mask"
    labels = ("mask",)
    class_weights: Tensor

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        cells: PositiveInt = 1,
        weight: NonNegativeFloat = 1.0,
        background_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, num_classes, cells, weight)
        self.num_classes = num_classes
        weights = torch.tensor([background_weight] + [1.0] * (num_classes - 1))
        self.register_buffer("class_weights", weights, persistent=False)

    def _shares(self, batch: dict[str, Any]) -> Tensor:
        classes = torch.arange(self.num_classes, device=batch["mask"].device).view(-1, 1, 1)
        return self.pool(batch["mask"].unsqueeze(1) == classes)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(prediction, self._shares(batch), weight=self.class_weights)

    def metrics(self) -> MetricCollection:
        """Accuracy over cells, and over those cells whose largest class is not the background."""
        return MetricCollection(
            {
                "mask_accuracy": MulticlassAccuracy(self.num_classes, average="micro"),
                "mask_foreground_accuracy": MulticlassAccuracy(self.num_classes, average="micro", ignore_index=0),
            },
            compute_groups=False,
        )

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, self._shares(batch).argmax(dim=1))


class DepthHead(DenseHead):
    """Mean depth ("depth", (B, H, W), positive) of each cell: L1 distance of logarithms.

    Args:
        spec: of the features.
        cells: cells along each side of a patch.
        weight: factor on the loss.
    """

    name = "depth"
    labels = ("depth",)

    def __init__(self, spec: FeatureSpec, cells: PositiveInt = 1, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(spec, 1, cells, weight)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.l1_loss(prediction, self.pool(batch["depth"].unsqueeze(1)).log())

    def metrics(self) -> MetricCollection:
        """Mean relative error |d - d*| / d*."""
        return MetricCollection({"depth_abs_rel": MeanAbsolutePercentageError()})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction.exp(), self.pool(batch["depth"].unsqueeze(1)))


class ColorHead(DenseHead):
    """Mean colour of each cell of the image itself: mean squared error of RGB in [0, 1].

    Args:
        spec: of the features.
        cells: cells along each side of a patch.
        weight: factor on the loss.
    """

    name = "color"

    def __init__(self, spec: FeatureSpec, cells: PositiveInt = 1, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(spec, 3, cells, weight)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.mse_loss(prediction, self.pool(to_unit_range(batch["image"])))

    def metrics(self) -> MetricCollection:
        """Root of the mean squared error of RGB in [0, 1]."""
        return MetricCollection({"color_rmse": MeanSquaredError(squared=False)})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction.contiguous(), self.pool(to_unit_range(batch["image"])))
