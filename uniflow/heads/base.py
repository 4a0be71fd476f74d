"""Base class of heads: features -> a prediction, its loss and its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchmetrics import MetricCollection

from uniflow.core.numbers import CheckedNumbers, NonNegativeFloat
from uniflow.core.specs import EncoderOutput


class Head(CheckedNumbers, nn.Module, ABC):
    """Predicts one thing from features. A subclass takes the `FeatureSpec` of the features first.

    Attributes:
        name: of the head, in the names of its losses and metrics.
        labels: what the head needs in a batch besides "image"; empty if it needs no labels.
        weight: factor on the head's loss.

    Args:
        weight: factor on the head's loss, at least 0.

    Raises:
        ValueError: if the weight is negative.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()

    def __init__(self, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def check_data(self, data: Any) -> None:
        """Called with the data module before training and evaluation; nothing by default.

        Raises:
            ValueError: if the head cannot be used with this data.
        """

    @abstractmethod
    def forward(self, features: EncoderOutput) -> Tensor:
        """The prediction in float32, from features in float32."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """A scalar, not yet weighted."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """New metrics for one evaluation. They are computed over the whole split and over all processes."""

    @abstractmethod
    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        """Feed one batch to what `metrics` gave."""

    def results(self, metrics: MetricCollection, stage: Literal["val", "test"]) -> dict[str, Tensor]:
        """The numbers of one evaluation by name, from what `update_metrics` fed; called once, by all processes."""
        return metrics.compute()

    def report(self) -> dict[str, Any]:
        """What RUN/test_results.json says of the head besides its numbers, as NAME/KEY; for JSON."""
        return {}

    def lr_multiplier(self, name: str, step_images: Callable[[], int]) -> float:
        """Factor on the learning rate of the head's parameter `name`, `step_images()` gives the images of a step."""
        return 1.0
