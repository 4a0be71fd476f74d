"""Bringing together what several processes saw."""

from __future__ import annotations

from typing import Any

import torch


def gather_lists(own: list[Any]) -> list[Any]:
    """The lists of all processes, joined in the order of ranks; every process has to call it and gets the result."""
    if not torch.distributed.is_initialized():
        return own
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return [item for part in parts for item in part]
