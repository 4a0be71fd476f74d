"""Layers that autocast leaves in full precision."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.precision import full_dtype, without_autocast


class ExactLinear(nn.Module):
    """A linear layer computed in at least float32, also under autocast.

    For solutions in closed form: their weights can be large and cancel, which bfloat16 does not survive (on DINOv2's
    early layers it cost 1.8 dB). It is not an `nn.Linear`, so that what quantises those leaves it as it is (8 bits cost
    the embedded tokenizer 1.2 dB).

    Args:
        in_features: channels that come in.
        out_features: channels that come out.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features), of any float type -> (..., out_features), at least float32."""
        dtype = full_dtype(input.dtype)
        with without_autocast(input.device):
            return F.linear(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
