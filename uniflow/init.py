"""Initialisation that parts share."""

from __future__ import annotations

from torch import nn


def preserve_variance_(*layers: nn.Linear) -> None:
    """Initialise linear layers so that their output varies as much as their input (LeCun normal, no bias).

    PyTorch's default shrinks the signal to 58 % a layer. In a chain of projections the latent then drowns in the
    position embedding that is added behind them, and the decoder learns slowly.
    """
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
