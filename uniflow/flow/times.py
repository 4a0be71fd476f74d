"""Times of the flow: drawn for training, stepped through in sampling."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from uniflow.core.numbers import MOST_STEPS


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


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Move times towards the noise: t / (t + shift (1 - t)) (arXiv 2403.03206, equation 23, in this clock).

    Args:
        t: times in [0, 1].
        shift: above 0; above 1 spends more time near the noise, 1 changes nothing.
    """
    return t / (t + shift * (1 - t))


def dimension_shift(numbers: int, base: int = 4096) -> float:
    """The shift for data of so many numbers, sqrt(numbers / base): the more there are, the more noise hides them all.

    (arXiv 2510.11690 for latents of high dimension; 4096 = 4 x 32 x 32 are those that schedules were tuned on.)
    """
    return math.sqrt(numbers / base)


def step_times(steps: int, *, schedule: Literal["linear", "power"] = "linear", power: float = 1.0) -> list[float]:
    """The `steps` + 1 edges of the sampler's steps, from 0 to 1.

    Args:
        steps: number of steps S >= 1.
        schedule: "linear": t_i = i / S; "power": t_i = 1 - ((S - i) / S)^(1 / power).
        power: exponent of the power schedule; 1 is linear, below 1 lengthens the first steps.

    Raises:
        ValueError: for fewer than one step, more than `MOST_STEPS`, or a power that is not positive.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"a sampler takes from 1 to {MOST_STEPS:,} steps, not {steps}")
    if power <= 0:
        raise ValueError(f"the power of a step schedule must be positive, got {power}")
    exponent = 1 / power if schedule == "power" else 1.0
    return [1 - ((steps - i) / steps) ** exponent for i in range(steps + 1)]
