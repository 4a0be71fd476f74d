"""Full precision inside mixed-precision training: losses, norms and distances are computed in at least float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half-precision types, else `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(tensor: Tensor) -> Tensor:
    """`tensor` in at least float32."""
    return tensor.to(full_dtype(tensor.dtype))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off; does nothing on a device without autocast, such as meta."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
