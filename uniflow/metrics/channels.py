"""Mean and standard deviation of each channel over a whole data set, in any batches and on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from uniflow.core.distributed import gather_lists


@dataclass(frozen=True)
class Moments:
    """Mean and spread of each channel of a set of images.

    Attributes:
        mean: of each channel, (C,), float64.
        std: population standard deviation of each channel (divided by N, not by N - 1), (C,), float64.
        count: places N that were counted: batch times height times width.
    """

    mean: Tensor
    std: Tensor
    count: int


class ChannelMoments:
    """Collects `Moments` in float64.

    Each batch is reduced to its count, mean and sum of squared deviations, and these are merged pairwise (Chan, Golub
    and LeVeque 1983), so that a mean far from zero costs no digits.
    """

    def __init__(self) -> None:
        self._own: _Sums | None = None

    def update(self, images: Tensor) -> None:
        """Add (B, C, h, w), of any float type."""
        # On the CPU: Apple's GPUs have no float64, and most others are slow at it.
        columns = images.detach().cpu().double().transpose(0, 1).flatten(1)
        mean = columns.mean(dim=1)
        batch = _Sums(columns.shape[1], mean, (columns - mean[:, None]).square().sum(dim=1))
        self._own = batch if self._own is None else _merge(self._own, batch)

    def compute(self) -> Moments:
        """The moments over all processes; starts afresh. Every process has to call it, and all get the same numbers.

        Raises:
            ValueError: if nothing was added in any process.
        """
        filled = [part for part in gather_lists([self._own]) if part is not None]
        self._own = None
        if not filled:
            raise ValueError("there is nothing to take mean and standard deviation of: the data has no images")
        sums = reduce(_merge, filled)
        return Moments(sums.mean, (sums.squares / sums.count).sqrt(), sums.count)


@dataclass(frozen=True)
class _Sums:
    count: int
    mean: Tensor
    squares: Tensor  # of the deviations from the mean


def _merge(left: _Sums, right: _Sums) -> _Sums:
    count = left.count + right.count
    delta = right.mean - left.mean
    return _Sums(
        count,
        left.mean + delta * (right.count / count),
        left.squares + right.squares + delta.square() * (left.count * right.count / count),
    )
