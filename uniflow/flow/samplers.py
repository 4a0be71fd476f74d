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


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of velocities: v_null + g (v - v_null); g = 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)
