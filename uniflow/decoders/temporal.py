"""Attention over the frames of a clip, which starts as nothing and leaves single images alone."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.layers.over_time import Memory


class TemporalAttention(nn.Module):
    """x_t + P sum_s a_ts (v_s - v_t), over this frame and the `window` - 1 before it, at each place by itself.

    The values are differences to the frame's own. So a clip's first frame, and an image, pass without a change of a bit
    whatever has been learned, and so does every frame while P is zero, as it is in the beginning; where nothing
    moves, nothing is added. Scores have a trained bias for each head and distance in time.

    Args:
        width: channels of the tokens.
        num_heads: attention heads; divides `width`.
        window: frames that a frame sees, itself included.
    """

    starts_as_identity: ClassVar[bool] = True  # a training may begin from weights that lack it

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, window))
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, tokens: Tensor, frames: int, memory: Memory | None = None) -> Tensor:
        """Tokens (B T, N, width) of B clips of T = `frames` frames -> the same shape.

        Args:
            tokens: clip after clip.
            frames: T.
            memory: of the frames before these, which is read and brought up to date: keys and values, each
                (B N, heads, frames, D). None: there are none.
        """
        heads = self.qkv(self.norm(tokens)).unflatten(0, (-1, frames)).unflatten(-1, (3, self.num_heads, -1))
        # (B, T, N, 3, heads, D) -> 3 times (B N, heads, T, D)
        query, key, value = heads.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        own = value
        if memory is not None:
            if self in memory:
                past_key, past_value = memory[self]
                key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
            kept = max(0, key.shape[2] - (self.window - 1))
            memory[self] = (key[:, :, kept:].detach(), value[:, :, kept:].detach())
        mask = self._scores(frames, key.shape[2]).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask) - own
        mixed = mixed.unflatten(0, (-1, tokens.shape[1])).permute(0, 3, 1, 2, 4)  # (B, T, N, heads, D)
        return tokens + self.projection(mixed.flatten(3).flatten(0, 1))

    def _scores(self, frames: int, keys: int) -> Tensor:
        """The bias of each pair of frames, (heads, frames, keys); -inf where a frame must not look."""
        device = self.distance_bias.device
        distance = torch.arange(keys - frames, keys, device=device)[:, None] - torch.arange(keys, device=device)
        hidden = (distance < 0) | (distance >= self.window)
        bias = self.distance_bias[:, distance.clamp(0, self.window - 1)]
        return bias.masked_fill(hidden, float("-inf"))
