"""Classifiers that need no training: fitted at test time, k-NN and logistic regression on one vector for each image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import MetricCollection

from uniflow.heads.label import accuracies
from uniflow.metrics import LogisticRegression, NearestNeighbours


class FittedClassifiers:
    """k-NN with several k, and logistic regression, fitted once and scored batch by batch.

    Args:
        features: (N, D), any float type; computed with in float64.
        labels: (N,), integers from 0.
        num_classes: number of classes.
        neighbours: numbers k of nearest neighbours; empty leaves k-NN out.
        temperature: of the neighbours' votes, exp(cosine / temperature).
        logistic_l2: penalty on the squared weights of the logistic regression; None leaves it out.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        neighbours: Sequence[int],
        temperature: float,
        logistic_l2: float | None,
    ) -> None:
        self._ks = list(neighbours)
        self._nearest = NearestNeighbours(features, labels, num_classes, temperature) if self._ks else None
        self._logistic = None
        if logistic_l2 is not None:
            self._logistic = LogisticRegression(features, labels, num_classes, l2=logistic_l2)
        names = [f"knn_{k}" for k in self._ks] + (["logistic"] if self._logistic else [])
        self._metrics: dict[str, MetricCollection] = {name: accuracies(num_classes) for name in names}
        for metrics in self._metrics.values():
            metrics.to(features.device)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Score a batch: features (B, D), labels (B,)."""
        scores: dict[str, Tensor] = {}
        if self._nearest is not None:
            votes = self._nearest.votes(features, self._ks)
            scores |= {f"knn_{k}": vote for k, vote in zip(self._ks, votes, strict=True)}
        if self._logistic is not None:
            scores["logistic"] = self._logistic.logits(features)
        for name, score in scores.items():
            self._metrics[name].update(score, labels)

    def compute(self) -> dict[str, float]:
        """Shares of right answers over all processes: "knn_10", "knn_10_top5", ..., "logistic", "logistic_top5"."""
        return {
            name if metric == "accuracy" else f"{name}_{metric}": float(value)
            for name, metrics in self._metrics.items()
            for metric, value in metrics.compute().items()
        }
