"""How much each layer's distance counts in the distillation loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from uniflow.core.numbers import CheckedNumbers, NonNegativeFloat
from uniflow.layers.precision import full_precision
from uniflow.training.schedules import Schedule, as_schedule


class LayerWeighting(CheckedNumbers, ABC):
    """Base class: the layers' distances -> the layers' weights, which sum to 1 and carry no gradient.

    A subclass implements `scores`; depth enters relatively, so that it works for any number of layers.
    """

    def __call__(self, distances: Tensor, progress: float) -> Tensor:
        """Weights of the layers.

        Args:
            distances: d_l of each block, (L,), in [0, 2], first block first.
            progress: training progress in [0, 1].

        Returns:
            Weights (L,), non-negative, summing to 1, detached, at least float32.

        Raises:
            ValueError: if the scores do not have the distances' shape.
        """
        distances = distances.detach()
        distances = full_precision(distances)
        with torch.no_grad():
            scores = self.scores(distances, progress)
        if scores.shape != distances.shape:
            raise ValueError(
                f"{type(self).__name__}.scores must return one score a layer, {tuple(distances.shape)}, "
                f"got {tuple(scores.shape)}"
            )
        return scores / scores.sum()

    @abstractmethod
    def scores(self, distances: Tensor, progress: float) -> Tensor:
        """Non-negative relative weights (L,); the base class normalises them."""


class UniformWeighting(LayerWeighting):
    """Every layer counts the same."""

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        return torch.ones_like(distances)


class LastLayer(LayerWeighting):
    """Only the last layer counts, as in plain feature distillation."""

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        scores = torch.zeros_like(distances)
        scores[-1] = 1
        return scores


class DepthPrior(LayerWeighting):
    """Deeper layers count more: w_l ~ (l/L)^strength. Strength 1 is the paper's prior, 0 is uniform.

    Args:
        strength: exponent; a number, or a schedule over training progress.
    """

    def __init__(self, strength: NonNegativeFloat | Schedule = 1.0) -> None:
        self.strength = as_schedule(strength, "DepthPrior.strength")

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        return relative_depth(distances) ** self.strength(progress)


class Adaptive(LayerWeighting):
    """Deeper layers, and layers that have drifted further, count more (arXiv 2510.10575, layer-wise adaptive weights).

    w_l ~ (l/L)^prior exp(beta d_l).

    Args:
        beta: how strongly a layer's distance raises its weight; 0 leaves the prior alone. A number or a schedule.
        prior: exponent of the depth prior; 1 is the paper's, 0 drops it. A number or a schedule.
    """

    def __init__(self, beta: NonNegativeFloat | Schedule = 2.0, prior: NonNegativeFloat | Schedule = 1.0) -> None:
        self.beta = as_schedule(beta, "Adaptive.beta")
        self.prior = as_schedule(prior, "Adaptive.prior")

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        # Subtracting the largest distance changes nothing after normalisation and keeps exp() in range for any beta.
        adaptive = torch.exp(self.beta(progress) * (distances - distances.max()))
        return relative_depth(distances) ** self.prior(progress) * adaptive


def relative_depth(distances: Tensor) -> Tensor:
    """l/L for l = 1..L, shaped and typed as `distances` (L,)."""
    layers = distances.shape[0]
    return torch.arange(1, layers + 1, device=distances.device, dtype=distances.dtype) / layers
