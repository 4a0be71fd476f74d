"""Latents -> one condition vector a patch, with all patches in view."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from uniflow.layers.grid import PositionEmbedding, Window, cut, to_tokens
from uniflow.layers.init import preserve_variance_


class GlobalStage(nn.Module):
    """Latents -> one condition vector a patch: C = GTB(up(z) + PE) + PE' (arXiv 2510.10575).

    Args:
        channels: channels of the latents.
        width: channels of the condition.
        depth: number of global transformer blocks.
        num_heads: attention heads; divides `width`.
        learned_grid: see `PositionEmbedding`.
        position_shift: `shift` of both position embeddings, which get the same offsets.

    Raises:
        ValueError: if `num_heads` does not divide `width`, or the embedding cannot be shifted.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        num_heads: int,
        learned_grid: tuple[int, int] | None = None,
        position_shift: int = 0,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"the decoder's width {width} must be divisible by its num_heads {num_heads}")
        self.up = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        preserve_variance_(*(layer for layer in self.up if isinstance(layer, nn.Linear)))
        self.position_in = PositionEmbedding(width, learned_grid, position_shift)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.position_out = PositionEmbedding(width, learned_grid, position_shift)

    def forward(self, latents: Tensor, window: Window | None = None) -> Tensor:
        """Latents (B, channels, h, w) -> condition (B, h w, width); of a `window` of them, seeing nothing else."""
        grid = (latents.shape[-2], latents.shape[-1])
        offsets = self.position_in.draw_offsets(latents.shape[0])
        tokens = self.up(to_tokens(cut(latents, window)))
        tokens = self.position_in(tokens, grid, window, offsets)
        for block in self.blocks:
            tokens = block(tokens)
        return self.position_out(tokens, grid, window, offsets)
