"""Self-attention over a grid of tokens with rotary positions, cross-attention, and a gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uniflow.layers.adaln import zero_linear
from uniflow.layers.grid import to_image, to_tokens
from uniflow.layers.precision import full_precision, without_autocast


def rotary_angles(grid: tuple[int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles of axial rotary position embeddings (arXiv 2104.09864), (h w, head_dim / 2), float32.

    The first half of the angles turns by the row, the second by the column, with frequencies 100^(-k / (head_dim / 4)):
    grids have tens of positions, not thousands.

    Raises:
        ValueError: if `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4 channels, got {head_dim}")
    frequencies = 100.0 ** (-torch.arange(head_dim // 4, device=device, dtype=torch.float32) / (head_dim // 4))
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies for side in grid)
    both = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)], dim=-1)
    return both.flatten(0, 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x_k, x_{k + d/2}) of (..., N, d) by angles (N, d / 2)."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention of (B, heads, N, d), with a mask that broadcasts to (B, heads, N, keys), True where a key is seen.

    With `causal` query n sees the keys up to n, and there is no mask.

    On CPUs training computes it in float32: torch's backward pass in bfloat16 takes up to nine times as long.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with without_autocast(q.device):
        q, k, values = (full_precision(x) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, values, attn_mask=mask, is_causal=causal).to(v.dtype)


class GridAttention(nn.Module):
    """Self-attention with normalised queries and keys (RMSNorm, arXiv 2302.05442) and rotary positions.

    Args:
        width: channels.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = (nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Tokens (B, N, width) and their angles (N, head_dim / 2) -> (B, N, width)."""
        return self._joined(attend(*self._split(x, angles)))

    def _split(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, (B, heads, N, head_dim)."""
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        q, k = (rotate(norm(full_precision(x)), angles) for norm, x in ((self.norm_q, q), (self.norm_k, k)))
        return q.to(v.dtype), k.to(v.dtype), v

    def _joined(self, attended: Tensor) -> Tensor:
        return self.proj(rearrange(attended, "b heads n d -> b n (heads d)"))


@dataclass
class KeyValues:
    """Keys and values of the tokens that one attention layer has seen, (B, heads, N, head_dim); None before any."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in those of further tokens; returns all."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=2)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=2)
        return self.keys, self.values


class CausalAttention(GridAttention):
    """`GridAttention` in which a token sees itself and those before it."""

    def forward(self, x: Tensor, angles: Tensor, cache: KeyValues | None = None) -> Tensor:
        """Tokens (B, N, width) and their angles (N, head_dim / 2) -> (B, N, width).

        With a cache x is the one token (N = 1) that comes after those in it, which it joins.
        """
        q, k, v = self._split(x, angles)
        if cache is None:
            return self._joined(attend(q, k, v, causal=True))
        return self._joined(attend(q, *cache.extended(k, v)))


class CrossAttention(nn.Module):
    """Attention from tokens to those of a condition; its output starts at zero.

    Args:
        width: channels of the tokens.
        context_width: channels of the condition's tokens.
        num_heads: divides `width`.
    """

    def __init__(self, width: int, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context_width, 2 * width)
        self.norm_q, self.norm_k = (nn.RMSNorm(width // num_heads, eps=1e-6) for _ in range(2))
        self.proj = zero_linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, N, width), context (B, T, context_width) and its mask (B, T), True where a token is."""
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        k, v = rearrange(self.kv(context), "b t (two heads d) -> two b heads t d", two=2, heads=self.num_heads)
        q, k = (norm(full_precision(x)).to(v.dtype) for norm, x in ((self.norm_q, q), (self.norm_k, k)))
        allowed = None if mask is None else mask[:, None, None]
        attended = attend(q, k, v, allowed)
        return self.proj(rearrange(attended, "b heads n d -> b n (heads d)"))


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): W3 (silu(W1 x) * W2 x), as large as a plain MLP of ratio `mlp_ratio`.

    With a `kernel` W1 x and W2 x go through a depthwise convolution over the grid of tokens, as in SANA's MLP
    (arXiv 2410.10629). It starts as the identity.

    Args:
        width: channels.
        mlp_ratio: hidden channels of the plain MLP over `width`.
        kernel: side of the convolution, an odd number; 0 is none.
    """

    def __init__(self, width: int, mlp_ratio: float, kernel: int = 0) -> None:
        super().__init__()
        hidden = max(8, round(width * mlp_ratio * 2 / 3 / 8) * 8)
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.conv = None if kernel == 0 else _identity_conv(2 * hidden, kernel)
        self.proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(..., width) -> (..., width); with a kernel (B, rows * columns, width) and the `grid`, rows and columns."""
        hidden = self.gate_and_value(x)
        if self.conv is not None:
            assert grid is not None
            hidden = to_tokens(self.conv(to_image(hidden, grid[0])))
        gate, value = hidden.chunk(2, dim=-1)
        return self.proj(F.silu(gate) * value)


def _identity_conv(channels: int, kernel: int) -> nn.Conv2d:
    """A depthwise convolution that changes nothing yet."""
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    nn.init.dirac_(conv.weight, groups=channels)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
