"""Latents -> one condition vector a patch, with all patches in view."""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from uniflow.decoders.temporal import TemporalAttention
from uniflow.layers.grid import PositionEmbedding, Window, cut, to_tokens
from uniflow.layers.init import preserve_variance_
from uniflow.layers.over_time import OverTime


class GlobalStage(OverTime):
    """Latents -> one condition vector a patch: C = GTB(up(z) + PE) + PE' (arXiv 2510.10575).

    Args:
        channels: channels of the latents.
        width: channels of the condition.
        depth: number of global transformer blocks.
        num_heads: attention heads; divides `width`.
        learned_grid: see `PositionEmbedding`.
        position_shift: `shift` of both position embeddings, which get the same offsets.
        temporal_window: frames of a clip that a frame sees, itself included, after each block; 0 makes a stage of
            images alone.

    Raises:
        ValueError: if `num_heads` does not divide `width`, the embedding cannot be shifted, or there is no block for
            the temporal window.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        num_heads: int,
        learned_grid: tuple[int, int] | None = None,
        position_shift: int = 0,
        temporal_window: int = 0,
    ) -> None:
        super().__init__()
        if temporal_window and not depth:
            raise ValueError("a temporal_window needs global blocks: raise global_depth, or set temporal_window to 0")
        if width % num_heads:
            raise ValueError(f"the decoder's width {width} must be divisible by its num_heads {num_heads}")
        self.up = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        preserve_variance_(*(layer for layer in self.up if isinstance(layer, nn.Linear)))
        self.position_in = PositionEmbedding(width, learned_grid, position_shift)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.position_out = PositionEmbedding(width, learned_grid, position_shift)
        self.temporal: nn.ModuleList | None = None
        if temporal_window:
            self.temporal = nn.ModuleList(TemporalAttention(width, num_heads, temporal_window) for _ in range(depth))

    def forward(self, latents: Tensor, window: Window | None = None) -> Tensor:
        """Latents (B, channels, h, w) -> condition (B, h w, width); of a `window` of them, seeing nothing else."""
        grid, (frames, memory) = (latents.shape[-2], latents.shape[-1]), self._clip
        if latents.shape[0] % frames:
            raise ValueError(f"{latents.shape[0]} latents are not whole clips of {frames} frames")
        offsets = self.position_in.draw_offsets(latents.shape[0] // frames)
        if offsets is not None:
            offsets = [offset for offset in offsets for _ in range(frames)]
        tokens = self.up(to_tokens(cut(latents, window)))
        tokens = self.position_in(tokens, grid, window, offsets)
        in_time = self.temporal is not None and (frames > 1 or memory is not None)
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if in_time:
                tokens = self.temporal[number](tokens, frames, memory)  # type: ignore[index]
        return self.position_out(tokens, grid, window, offsets)
