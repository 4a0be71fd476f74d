"""A task in one file: the mean colour of an image, by linear regression from frozen features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads import Head
from uniflow.tasks import FeatureTask


class MeanColorHead(Head):
    """Mean RGB of the image, in [0, 1], from the mean patch token.

    Args:
        spec: of the features.
        weight: factor on the loss.
    """

    name = "mean_color"

    def __init__(self, spec: FeatureSpec, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.linear = nn.Linear(spec.embed_dim, 3)

    def forward(self, features: EncoderOutput) -> Tensor:
        return self.linear(features.hidden_states[-1].mean(dim=1))

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.mse_loss(prediction, self.target(batch))

    def metrics(self) -> MetricCollection:
        return MetricCollection({"mean_color_rmse": MeanSquaredError(squared=False)})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, self.target(batch))

    def target(self, batch: dict[str, Any]) -> Tensor:
        return to_unit_range(batch["image"]).mean(dim=(2, 3))


class MeanColorTask(FeatureTask):
    """`FeatureTask` whose best checkpoint is the one with the smallest error of the mean colour."""

    monitor = ("val/mean_color_rmse", "min")
