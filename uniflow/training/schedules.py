"""Values that change over training: learning rates, loss weights, a weighting's strength."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from uniflow.core.numbers import CheckedNumbers, FiniteFloat, UnitFloat, UnitFloatBelow1


class Schedule(CheckedNumbers, ABC):
    """A number as a function of training progress in [0, 1], 0 = first step, 1 = last."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value at `progress`."""


class ConstantSchedule(Schedule):
    """The same `value` all the time."""

    def __init__(self, value: FiniteFloat = 1.0) -> None:
        self.value = value

    def __call__(self, progress: float) -> float:
        return self.value


class LinearSchedule(Schedule):
    """A straight line from `start` to `end`."""

    def __init__(self, start: FiniteFloat = 1.0, end: FiniteFloat = 0.0) -> None:
        self.start, self.end = start, end

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


class CosineSchedule(Schedule):
    """Half a cosine wave from `start` to `end`: flat at both ends."""

    def __init__(self, start: FiniteFloat = 1.0, end: FiniteFloat = 0.0) -> None:
        self.start, self.end = start, end

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class Warmup(Schedule):
    """A linear rise from 0 over the first `fraction` of training to the first value of `after`, which then takes over.

    `after` sees its own progress, 0 when the warm-up ends and 1 when training ends.
    """

    def __init__(self, fraction: UnitFloatBelow1 = 0.05, after: FiniteFloat | Schedule = 1.0) -> None:
        self.fraction = fraction
        self.after = as_schedule(after)

    def __call__(self, progress: float) -> float:
        if progress < self.fraction:
            return self.after(0.0) * progress / self.fraction
        return self.after((progress - self.fraction) / (1 - self.fraction))


class Piecewise(Schedule):
    """Straight lines between points; constant before the first and after the last.

    Args:
        progress: increasing positions in [0, 1].
        values: the value at each position.
    """

    def __init__(self, progress: Sequence[UnitFloat], values: Sequence[FiniteFloat]) -> None:
        if len(progress) != len(values) or not progress:
            raise ValueError(
                f"Piecewise needs the same number of values as positions, got {len(values)} and {len(progress)}"
            )
        if list(progress) != sorted(progress):
            raise ValueError(f"Piecewise.progress must increase, got {list(progress)}")
        self.progress, self.values = list(progress), list(values)

    def __call__(self, progress: float) -> float:
        if progress <= self.progress[0]:
            return self.values[0]
        for i in range(1, len(self.progress)):
            left, right = self.progress[i - 1], self.progress[i]
            if progress < right:
                share = (progress - left) / (right - left)
                return self.values[i - 1] + share * (self.values[i] - self.values[i - 1])
        return self.values[-1]


def as_schedule(value: float | Schedule, user: str | None = None) -> Schedule:
    """`value` itself if it is a schedule, else the constant.

    Args:
        value: a schedule or a number.
        user: the argument that it is for, which takes no negative values; None takes any.

    Raises:
        ValueError: if the schedule of a `user` goes below 0 or is not finite, as far as 101 points of it show.
    """
    schedule = value if isinstance(value, Schedule) else ConstantSchedule(value)
    for percent in range(101) if user is not None else ():
        if not 0 <= schedule(percent / 100) < math.inf:
            raise ValueError(
                f"{user} must be finite and >= 0 all the time, and {type(schedule).__name__} gives "
                f"{schedule(percent / 100)} after {percent} % of training"
            )
    return schedule
