"""Sums of products over a data set, in any batches and on any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

from uniflow.core.distributed import sum_over_ranks


class SecondMoments:
    """Means of, and covariances between, the inputs and the targets of a linear regression, in float64.

    Only sums are kept, so neither order nor batch size nor number of processes matters, except for rounding.

    Attributes:
        count: rows added, of all processes after `reduce`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Add rows.

        Args:
            inputs: (N, F), of any float type.
            targets: (N, T), on the same device.
        """
        x, y = _exact(inputs), _exact(targets)
        # The targets' own products are needed on the diagonal only.
        sums = [x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0)]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.count += len(x)

    def reduce(self) -> None:
        """Add up the sums of all processes; every process has to call it, and all get the same numbers.

        Raises:
            ValueError: if this process has added nothing.
        """
        if not self._sums:
            raise ValueError("there is nothing to regress on: the training data gave no image")
        count = torch.tensor(self.count, dtype=torch.int64, device=self._sums[0].device)
        sum_over_ranks(count, *self._sums)
        self.count = int(count)

    @property
    def input_mean(self) -> Tensor:
        """(F,)."""
        return self._sums[0] / self.count

    @property
    def target_mean(self) -> Tensor:
        """(T,)."""
        return self._sums[1] / self.count

    @property
    def input_covariance(self) -> Tensor:
        """(F, F), divided by the count."""
        return self._sums[2] / self.count - torch.outer(self.input_mean, self.input_mean)

    @property
    def cross_covariance(self) -> Tensor:
        """Of inputs and targets, (F, T)."""
        return self._sums[3] / self.count - torch.outer(self.input_mean, self.target_mean)

    @property
    def target_variance(self) -> Tensor:
        """Of each target, (T,)."""
        return (self._sums[4] / self.count - self.target_mean.square()).clamp_min(0)


def _exact(rows: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (rows.detach().cpu() if rows.device.type == "mps" else rows.detach()).double()
