"""Layers that autocast leaves in full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExactLinear(nn.Linear):
    """A linear layer computed in float32 at least, whatever autocast says.

    For solutions in closed form: their weights can be large and cancel, which bfloat16 does not survive (on DINOv2's
    early layers it cost 1.8 dB).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features), of any float type -> (..., out_features), float32 at least."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with without_autocast(input.device):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off; the meta device, on which nothing is computed, knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
