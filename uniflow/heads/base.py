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
        entry_points: methods besides `forward` that use the head's parameters; sharding gathers them there.
        weight: factor on the head's loss.

    Args:
        weight: factor on the head's loss, at least 0.

    Raises:
        ValueError: if the weight is negative.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()
    entry_points: ClassVar[tuple[str, ...]] = ()

    def __init__(self, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def check_data(self, data: Any) -> None:
        """Called with the data module before training and evaluation; nothing by default.

        Raises:
            ValueError: if the head cannot be used with this data.
        """

    @abstractmethod
    def forward(self, features: EncoderOutput) -> Any:
        """The prediction in float32, from features in float32: a tensor, or whatever `loss` takes."""

    @abstractmethod
    def loss(self, prediction: Any, batch: dict[str, Any]) -> Tensor:
        """A scalar, not yet weighted."""

    def losses(self, prediction: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The parts that `loss` is the sum of, by the names under which training logs them; "" is the head's own."""
        return {"": self.loss(prediction, batch)}

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """New metrics for one evaluation. They are computed over the whole split and over all processes."""

    @abstractmethod
    def update_metrics(self, metrics: MetricCollection, prediction: Any, batch: dict[str, Any]) -> None:
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
