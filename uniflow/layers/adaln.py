"""Per-patch networks driven by a condition and a time: adaptive layer norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.init import preserve_variance_


def time_frequencies(count: int, device: torch.device) -> Tensor:
    """10000^(-k / count) for k = 0, 1, ..., float32.

    The exponent is a float32 number, as in the reference implementation; its exponential is taken in float64 and
    rounded, so that all machines and devices agree, which float32 `exp` does not promise.
    """
    where = "cpu" if device.type == "mps" else device  # MPS knows no float64
    exponent = -math.log(10000.0) * torch.arange(count, device=where, dtype=torch.float32) / count
    return torch.exp(exponent.double()).float().to(device)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the flow time, followed by an MLP.

    256 channels, cosines first, then sines, of 1000 t at frequencies 10000^(-k / 128), always in float32, as in
    the reference implementation.
    """

    channels = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(self.channels, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Times (...) in [0, 1] -> (..., width)."""
        frequencies = time_frequencies(self.channels // 2, t.device)
        angles = (1000 * t).to(torch.float32)[..., None] * frequencies
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.fc2(F.silu(self.fc1(embedding.to(self.fc1.weight.dtype))))


class AdaLNBlock(nn.Module):
    """Residual MLP with a conditioned norm and gate: x + gate MLP(LN(x) (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = zero_linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x and condition (..., width)."""
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class PatchMLP(nn.Module):
    """The per-patch network: AdaLN residual blocks driven by a condition, and by the time if there is one.

    Args:
        patch_dim: values of a patch, 3 p^2.
        width: channels of condition and blocks.
        depth: number of blocks.
        flow: True for a flow head, which sees a noisy patch and its time; False for a head that starts from a learned
            vector and knows no time.
    """

    def __init__(self, patch_dim: int, width: int, depth: int, *, flow: bool = True) -> None:
        super().__init__()
        self.time_embed: TimeEmbedding | None = None
        if flow:
            self.time_embed = TimeEmbedding(width)
            self.input_proj = nn.Linear(patch_dim, width)
        else:
            self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.cond_embed = nn.Linear(width, width)
        preserve_variance_(self.cond_embed)
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        # Not zero too: after a zero projection it would start without a gradient.
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_proj = zero_linear(width, patch_dim)

    def forward(self, condition: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Predict one patch per condition.

        Args:
            condition: (..., width).
            x_t: noisy patches (..., patch_dim); flow heads only.
            t: their times (...), in [0, 1]; flow heads only.

        Returns:
            (..., patch_dim).
        """
        y = self.cond_embed(condition)
        if self.time_embed is None:
            x = self.start.expand(*condition.shape[:-1], -1)
        else:
            if x_t is None or t is None:
                raise ValueError("a flow head needs the noisy patches x_t and their times t")
            y = y + self.time_embed(t)
            x = self.input_proj(x_t.to(condition.dtype))
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.final_modulation(F.silu(y)).chunk(2, dim=-1)
        return self.final_proj(self.final_norm(x) * (1 + scale) + shift)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero: every residual block as the identity, the output as the target's mean."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
