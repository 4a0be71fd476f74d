"""Checks of weights that were read from files."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor


def refuse_nonfinite(tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse weights with NaN or infinite values, whose results would be NaN in silence.

    Raises:
        ValueError: naming `source` and the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{os.fspath(source)}: the tensor {name} has {bad} values that are NaN or infinite, of "
                f"{tensor.numel()}; take weights of before the training broke down"
            )
