"""Number of processes, and sums and lists over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether torch.distributed has been initialised; also with a single process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, in place; every process has to call it."""
    if is_distributed():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def gather_lists(items: list[Any]) -> list[Any]:
    """The lists of all processes, joined in the order of ranks; every process has to call it and gets the result."""
    if not is_distributed():
        return items
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
