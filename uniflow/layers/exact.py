"""Layers that autocast leaves in full precision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.precision import full_dtype, without_autocast


class ExactLinear(nn.Linear):
    """A linear layer computed in at least float32, also under autocast.

    For solutions in closed form: their weights can be large and cancel, which bfloat16 does not survive (on DINOv2's
    early layers it cost 1.8 dB).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features), of any float type -> (..., out_features), at least float32."""
        dtype = full_dtype(input.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with without_autocast(input.device):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)
