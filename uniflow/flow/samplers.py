"""Samplers: velocity and noise -> data."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: list[float]) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from `noise` at times[0] to times[-1] with Euler's method (left end points)."""
    x = noise
    for start, end in itertools.pairwise(times):
        x = x + (end - start) * velocity(x, start)
    return x


def heun(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: list[float]) -> Tensor:
    """As `euler`, with Heun's method: the mean of the velocities at both ends of a step, of order 2.

    Two evaluations a step. The last one is at times[-1], where a velocity that is made of predicted data is bounded by
    `data_to_velocity`'s floor.
    """
    x = noise
    for start, end in itertools.pairwise(times):
        first = velocity(x, start)
        second = velocity(x + (end - start) * first, end)
        x = x + (end - start) * (first + second) / 2
    return x


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of velocities: v_null + g (v - v_null); g = 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)
