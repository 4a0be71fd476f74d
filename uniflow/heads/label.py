"""Heads that classify images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from uniflow.core.numbers import Int2, NonNegativeFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.base import Head


class LabelHead(Head):
    """Image class ("label", int64 (B,)) from the mean patch token of the last layer, by cross entropy.

    Args:
        spec: of the features.
        num_classes: number of classes.
        weight: factor on the loss.
    """

    name = "label"
    labels = ("label",)

    def __init__(self, spec: FeatureSpec, num_classes: Int2, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        self.num_classes = num_classes
        self.classifier = nn.Sequential(nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, num_classes))

    def check_data(self, data: Any) -> None:
        names = getattr(data, "class_names", None)
        if names is not None and len(names) > self.num_classes:
            raise ValueError(f"the data has {len(names)} classes, LabelHead.num_classes is {self.num_classes}")

    def forward(self, features: EncoderOutput) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.classifier(features.hidden_states[-1].mean(dim=1)).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(prediction, batch["label"])

    def metrics(self) -> MetricCollection:
        """Share of right answers, in [0, 1]."""
        return MetricCollection({"accuracy": MulticlassAccuracy(self.num_classes, average="micro")})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, batch["label"])
