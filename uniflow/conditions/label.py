"""The class of an image as a condition; and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniflow.conditions.base import Condition, Conditioning
from uniflow.core.numbers import PositiveInt, UnitFloat
from uniflow.core.specs import ConditionSpec


class LabelCondition(Condition):
    """The class of an image ("label", int64 (B,)); the entry after the last class stands for none.

    Args:
        num_classes: number of classes K.
        width: channels of the embedding.
        dropout: share of training samples without a class.
    """

    field = "label"

    def __init__(self, num_classes: PositiveInt, width: PositiveInt = 256, dropout: UnitFloat = 0.1) -> None:
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.spec = ConditionSpec(width)
        # Of unit variance: beside the vector of the time a small one would not be heard.
        self.embedding = nn.Embedding(num_classes + 1, width)

    def forward(self, values: Tensor | None, dropped: Tensor) -> Conditioning:
        if values is None:
            values = torch.zeros_like(dropped, dtype=torch.long)
        else:
            self._check(values)
        return Conditioning(self.embedding(torch.where(dropped, self.num_classes, values)))

    def parse(self, words: Sequence[str]) -> Tensor:
        """Numbers of classes."""
        if wrong := [word for word in words if not word.isascii() or not word.isdigit()]:
            raise ValueError(f"a class is a number from 0 to {self.num_classes - 1}, not {wrong[0]!r}")
        values = torch.tensor([int(word) for word in words])
        self._check(values)
        return values

    def example(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.long)

    def check_data(self, data: Any) -> None:
        names = getattr(data, "class_names", None)
        if names is not None and len(names) > self.num_classes:
            raise ValueError(f"the data has {len(names)} classes, LabelCondition.num_classes is {self.num_classes}")

    def _check(self, values: Tensor) -> None:
        # On a device looking would wait for it, and such an index stops there by itself; fake tensors have no values.
        if values.device.type != "cpu" or type(values) is not Tensor:
            return
        wrong = values[(values < 0) | (values >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"there is no class {int(wrong[0])}: LabelCondition knows 0 to {self.num_classes - 1}")


class NoCondition(Condition):
    """Nothing: images are drawn from the whole distribution.

    Args:
        width: channels of the vector, which is zero.
    """

    field = None

    def __init__(self, width: PositiveInt = 8) -> None:
        super().__init__()
        self.spec = ConditionSpec(width)

    def forward(self, values: Any, dropped: Tensor) -> Conditioning:
        return Conditioning(torch.zeros(len(dropped), self.spec.width, device=dropped.device))
