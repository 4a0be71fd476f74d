"""Initialisation that parts share."""

from __future__ import annotations

from torch import nn

from uniflow.layers.exact import ExactLinear


def preserve_variance_(*layers: nn.Linear | ExactLinear) -> None:
    """Initialise linear layers so that their output varies as much as their input (LeCun normal, no bias).

    PyTorch's default shrinks the signal to 58 % a layer, so that after a chain of projections the latent would be
    small compared with the position embedding. In short runs no difference was measured (docs/results.md).
    """
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
