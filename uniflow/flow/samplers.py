"""Samplers: velocity and noise -> data."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable

import torch
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


def need_torchdiffeq() -> None:
    """Do nothing if torchdiffeq is installed.

    Raises:
        ImportError: if it is not.
    """
    if importlib.util.find_spec("torchdiffeq") is None:
        raise ImportError("the sampler dopri5 needs torchdiffeq: pip install torchdiffeq")


def dopri5(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: list[float], tolerance: float) -> Tensor:
    """As `euler`, with torchdiffeq's Dormand-Prince method of order 5, which chooses its steps between times[0] and
    times[-1] by itself.

    Args:
        velocity: as for `euler`.
        noise: as for `euler`. The error is measured over all of it, so the steps of one sample depend on the others.
        times: only the first and the last one count.
        tolerance: the error of a step that is allowed, relative and absolute.

    Raises:
        ImportError: if torchdiffeq is not installed.
        ValueError: if no step is small enough, or the velocity is not finite.
    """
    need_torchdiffeq()
    span = torch.tensor([times[0], times[-1]], device=noise.device, dtype=noise.dtype)
    options = {"step_t": span}  # else the last step goes beyond the end, where there is no velocity
    try:
        path = importlib.import_module("torchdiffeq").odeint(
            lambda t, x: velocity(x, float(t)),
            noise,
            span,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options=options,
        )
    except AssertionError as error:  # torchdiffeq's word for it
        raise ValueError(f"dopri5 cannot reach the tolerance {tolerance:g} ({error}); allow more") from error
    return path[-1]


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of velocities: v_null + g (v - v_null); g = 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)
