"""The straight path from noise to data, and its velocity."""

from __future__ import annotations

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
