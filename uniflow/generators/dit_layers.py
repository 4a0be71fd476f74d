"""Layers of the diffusion transformer: its blocks, its output, and a wide head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.adaln import zero_linear
from uniflow.layers.attention import CausalAttention, CrossAttention, GatedMLP, GridAttention, KeyValues


class DiTBlock(nn.Module):
    """Attention and MLP whose norms and gates the condition drives; it starts as the identity (AdaLN-zero).

    With `causal` a token sees itself and those before it only; with a `kernel` the MLP has a convolution.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        token_width: int | None,
        causal: bool = False,
        kernel: int = 0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.attention = CausalAttention(width, num_heads) if causal else GridAttention(width, num_heads)
        self.cross = None if token_width is None else CrossAttention(width, token_width, num_heads)
        self.mlp = GatedMLP(width, mlp_ratio, kernel)
        self.modulation = zero_linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        angles: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        cache: KeyValues | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Tokens (B, N, width), the condition's vector (B, 1, width), its tokens and mask, and the angles.

        A causal block takes a cache, of the tokens before; x is then the next one. One with a kernel needs the grid.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        seen = () if cache is None else (cache,)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, angles, *seen)
        if self.cross is not None and tokens is not None:
            x = x + self.cross(self.norm1(x), tokens, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2, grid)


class OutputLayer(nn.Module):
    """Tokens -> what the network predicts of each, under the condition; starts as zero."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.proj = zero_linear(width, channels)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, N, width), the condition (B, 1, width) -> (B, N, channels)."""
        return self.proj(modulated(self.norm(tokens), self.modulation, condition))


def modulated(tokens: Tensor, modulation: nn.Module, condition: Tensor) -> Tensor:
    """Tokens scaled and shifted as `modulation` says of the condition."""
    shift, scale = modulation(F.silu(condition)).chunk(2, dim=-1)
    return tokens * (1 + scale) + shift


class WideHead(nn.Module):
    """A shallow, wide transformer over noisy latents, driven in each place by a deep, narrower one (arXiv 2510.11690).

    A network narrower than the latents cannot pass their noise on; here only the head has to. Starts as zero.

    Args:
        channels: of the latents.
        trunk_width: channels of the trunk's tokens and of the condition.
        width: channels of the head.
        depth: number of its blocks.
        num_heads: attention heads, of as many channels as the trunk's.
        mlp_ratio: hidden channels of each MLP over `width`.
    """

    def __init__(
        self, channels: int, trunk_width: int, width: int, depth: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(trunk_width, eps=1e-6)
        self.condition_proj = nn.Linear(trunk_width, width)
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, mlp_ratio, None) for _ in range(depth))
        self.output = OutputLayer(width, channels)

    def forward(self, noisy: Tensor, trunk: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
        """Noisy latents (B, N, channels), the trunk's tokens (B, N, trunk_width), the condition (B, 1, trunk_width) and
        the angles -> what the network predicts, (B, N, channels)."""
        local = self.condition_proj(self.norm(trunk) + condition)
        tokens = self.input_proj(noisy)
        for block in self.blocks:
            tokens = block(tokens, local, angles, None, None)
        return self.output(tokens, local)
