"""Checks and hashes of weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


def weights_hash(module: nn.Module) -> str:
    """The first 12 hex digits of the SHA-256 of a module's parameters and buffers, with their names.

    Tensors without values (on the device "meta") count by their shapes.
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """`weights_hash` of the module with this state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        if tensor.is_meta:
            digest.update(str(tuple(tensor.shape)).encode())
        else:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
