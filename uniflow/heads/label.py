"""Heads that classify images."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from uniflow.core.numbers import Int2, NonNegativeFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.base import Head

TOP = 5  # the second accuracy counts an answer as right if it is among the first five


class ClassificationHead(Head):
    """Base class of heads that say which class ("label", int64 (B,)) an image has.

    Args:
        num_classes: number of classes; None if only the data will say.
        weight: factor on the loss.
    """

    labels = ("label",)

    def __init__(self, num_classes: Int2 | None, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        self.num_classes = num_classes

    @property
    def known_classes(self) -> int:
        """Number of classes.

        Raises:
            ValueError: if it is not known yet.
        """
        if self.num_classes is None:
            raise ValueError(f"{type(self).__name__}: the number of classes is not known before the data")
        return self.num_classes

    def check_data(self, data: Any) -> None:
        names = getattr(data, "class_names", None)
        if names is not None and len(names) > self.known_classes:
            raise ValueError(
                f"the data has {len(names)} classes, {type(self).__name__}.num_classes is {self.num_classes}"
            )

    @abstractmethod
    def scores(self, prediction: Tensor) -> Tensor | None:
        """A number for each class, (B, num_classes), of which the largest wins; None if there is no answer yet."""


def accuracies(num_classes: int) -> MetricCollection:
    """Share of right answers, in [0, 1]: "accuracy", and "top5" where there are more than five classes."""
    metrics: dict[str, Metric | MetricCollection] = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
    if num_classes > TOP:
        metrics[f"top{TOP}"] = MulticlassAccuracy(num_classes, top_k=TOP, average="micro")
    return MetricCollection(metrics, compute_groups=False)


class LabelHead(ClassificationHead):
    """Image class ("label", int64 (B,)) from the mean patch token of the last layer, by cross entropy.

    Args:
        spec: of the features.
        num_classes: number of classes.
        weight: factor on the loss.
    """

    name = "label"

    def __init__(self, spec: FeatureSpec, num_classes: Int2, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(num_classes, weight)
        self.classifier = nn.Sequential(nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, num_classes))

    def forward(self, features: EncoderOutput) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.classifier(features.hidden_states[-1].mean(dim=1)).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(prediction, batch["label"])

    def metrics(self) -> MetricCollection:
        """Share of right answers, in [0, 1]."""
        return MetricCollection({"accuracy": MulticlassAccuracy(self.known_classes, average="micro")})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, batch["label"])

    def scores(self, prediction: Tensor) -> Tensor:
        return prediction
