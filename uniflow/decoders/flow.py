"""Rectified flow as pure functions: the path, the training times, the samplers.

One clock in the whole project: t = 0 is noise, t = 1 is data. (The paper, arXiv 2510.10575, writes it the other way
round.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) eps + t x. `t` broadcasts against `noise` and `data`."""
    return (1 - t) * noise + t * data


def velocity_target(noise: Tensor, data: Tensor) -> Tensor:
    """dx_t/dt = x - eps, the same at every t."""
    return data - noise


def data_to_velocity(data: Tensor, x_t: Tensor, t: Tensor, *, min_remaining: float = 0.05) -> Tensor:
    """The velocity that a predicted clean sample implies: (x_hat - x_t) / (1 - t).

    Args:
        data: predicted clean sample.
        x_t: the point on the path.
        t: its time, broadcasting.
        min_remaining: floor of 1 - t, so that the last stretch does not divide by zero.
    """
    return (data - x_t) / (1 - t).clamp_min(min_remaining)


def velocity_to_data(velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean sample that a velocity at x_t implies: x_t + (1 - t) v."""
    return x_t + (1 - t) * velocity


def sample_times(
    shape: tuple[int, ...],
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    uniform_share: float = 0.1,
    end_point_mass: float = 0.0,
) -> Tensor:
    """Training times: sigmoid(N(0, 1)), mixed with uniform times and with the end point t = 0.

    One-step decoding asks for the velocity at t = 0 exactly, where the paper's distribution has no mass.

    Args:
        shape: shape of the result.
        device: where to draw.
        generator: source of randomness.
        uniform_share: of the times that are not at the end point, the share drawn uniformly from [0, 1].
        end_point_mass: share of times that are exactly 0.

    Returns:
        Times in [0, 1], float32.
    """
    logit_normal = torch.sigmoid(torch.randn(shape, device=device, generator=generator, dtype=torch.float32))
    uniform = torch.rand(shape, device=device, generator=generator, dtype=torch.float32)
    choice = torch.rand(shape, device=device, generator=generator, dtype=torch.float32)
    times = torch.where(choice < end_point_mass + (1 - end_point_mass) * uniform_share, uniform, logit_normal)
    return torch.where(choice < end_point_mass, 0.0, times)


def step_times(steps: int, *, schedule: Literal["linear", "power"] = "linear", power: float = 1.0) -> list[float]:
    """The `steps` + 1 edges of the sampler's steps, from 0 to 1.

    Args:
        steps: number of steps S >= 1.
        schedule: "linear": t_i = i / S; "power": t_i = 1 - ((S - i) / S)^(1 / power).
        power: exponent of the power schedule; 1 is linear, below 1 lengthens the first steps.

    Raises:
        ValueError: for fewer than one step or a power that is not positive.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    if power <= 0:
        raise ValueError(f"the power of a step schedule must be positive, got {power}")
    exponent = 1 / power if schedule == "power" else 1.0
    return [1 - ((steps - i) / steps) ** exponent for i in range(steps + 1)]


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: list[float]) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from `noise` at times[0] to times[-1] with Euler's method (left end points)."""
    x = noise
    for start, end in itertools.pairwise(times):
        x = x + (end - start) * velocity(x, start)
    return x


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of velocities: v_null + g (v - v_null); g = 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)
