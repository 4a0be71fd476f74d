"""Optimisation: AdamW in its fused form, and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from uniflow.core.numbers import CheckedNumbers, NonNegativeFloat, UnitFloatBelow1


class FusedAdamW(CheckedNumbers, torch.optim.AdamW):
    """`torch.optim.AdamW`, fused wherever the parameters' device has a fused step.

    Unlike a plain fused optimizer it leaves the unscaling of float16 gradients to the scaler, so that gradients can be
    clipped under mixed precision.

    Args:
        params: parameters or parameter groups.
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay; norms, biases and other vectors are exempt (see `parameter_groups`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegativeFloat = 2e-4,
        betas: tuple[UnitFloatBelow1, UnitFloatBelow1] = (0.9, 0.95),
        eps: NonNegativeFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.05,
    ) -> None:
        groups = list(params)
        tensors = [p for g in groups for p in (g["params"] if isinstance(g, dict) else [g])]
        fused = all(p.device.type in ("cpu", "cuda", "xpu", "mps") and p.is_floating_point() for p in tensors)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self._step_supports_amp_scaling = False  # else Lightning refuses to clip under any mixed precision


def check_finite(optimizer: torch.optim.Optimizer) -> None:
    """Refuse settings that are not finite: torch's own checks let nan and inf pass.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in optimizer.defaults.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{type(optimizer).__name__}.{name} must be finite, got {value}")


def parameter_groups(module: nn.Module, multiplier: Callable[[str], float]) -> list[dict[str, Any]]:
    """Trained parameters, grouped by learning-rate multiplier and by whether weight decay applies.

    Args:
        module: whose parameters to group.
        multiplier: parameter name -> factor on the learning rate.

    Returns:
        Groups with the keys `params`, `multiplier` and `name`, and `weight_decay: 0` for vectors (norms, biases,
        layer scales, tokens) and position embeddings.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # Leading singleton dimensions do not make a token or an embedding table a matrix.
        decay = sum(size > 1 for size in parameter.shape) >= 2 and "pos_embed" not in name and "position" not in name
        factor = multiplier(name)
        group = groups.setdefault(
            (factor, decay),
            {"params": [], "multiplier": factor, "name": f"x{factor:g}{'' if decay else ', no decay'}"},
        )
        group["params"].append(parameter)
        if not decay:
            group["weight_decay"] = 0.0
    return list(groups.values())
