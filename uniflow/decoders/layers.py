"""Building blocks of the patch-wise decoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from uniflow.decoders.base import Window, cut
from uniflow.init import preserve_variance_

# Of each image, the row and column of a larger grid at which its own begins.
Offsets = list[tuple[int, int]]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, 3 p^2): patches row-major; within a patch channel slowest, then row, then column."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify` for a grid of (rows, columns)."""
    h, w = grid
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size)


def sincos_2d(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2D sine-cosine position embedding, (1, h w, width), float32.

    The first half of the channels encodes the column, the second the row; in each half sines come first, then cosines,
    with frequencies 10000^(-k / (width / 4)).

    Raises:
        ValueError: if `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a 2D sine-cosine embedding needs a width divisible by 4, got {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [torch.arange(side, dtype=torch.float64)[:, None] * omega for side in grid]
    rows, columns = (torch.cat([axis.sin(), axis.cos()], dim=1).float() for axis in angles)
    halves = [columns.expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)]
    return torch.cat(halves, dim=2).flatten(0, 1)[None]


class PositionEmbedding(nn.Module):
    """Adds a 2D position embedding to tokens of any grid.

    Args:
        width: channels of the tokens.
        learned_grid: None for fixed sines and cosines, computed for each grid; a grid (rows, columns) for a trained
            table of that size, which starts as sines and cosines and is resized bicubically for other grids.
        shift: most rows and columns by which `draw_offsets` moves the grid of an image; fixed embeddings only.

    Raises:
        ValueError: if `shift` is negative, or above 0 with a `learned_grid`.
    """

    def __init__(self, width: int, learned_grid: tuple[int, int] | None = None, shift: int = 0) -> None:
        super().__init__()
        if shift < 0:
            raise ValueError(f"position_shift must be at least 0, got {shift}")
        if shift and learned_grid is not None:
            raise ValueError(
                "position_shift moves fixed position embeddings: leave learned_grid null, or position_shift 0"
            )
        self.width, self.shift = width, shift
        # A saved config is JSON, where a tuple comes back as a list, which equals no grid.
        self.learned_grid = None if learned_grid is None else (learned_grid[0], learned_grid[1])
        self.table: nn.Parameter | None = None
        if learned_grid is not None:
            self.table = nn.Parameter(sincos_2d(width, learned_grid))
        self._cache: dict[tuple[tuple[int, int], torch.device, torch.dtype], Tensor] = {}

    def draw_offsets(self, images: int) -> Offsets | None:
        """For each image a random place (row, column) of its grid, each from 0 to `shift`; in training only.

        Positions that only larger pictures have are trained so. None, and no random number drawn, otherwise.
        """
        if not (self.training and self.shift):
            return None
        return [(row, column) for row, column in torch.randint(self.shift + 1, (images, 2)).tolist()]

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], window: Window | None = None, offsets: Offsets | None = None
    ) -> Tensor:
        """`tokens` plus the embedding of their places.

        Args:
            tokens: (B, h w, width), or those of the window only.
            grid: (h, w) of the whole picture.
            window: the rows and columns that the tokens are of; None is all of them.
            offsets: the place of each image's first row and column, see `draw_offsets`; None is (0, 0) for all.
        """
        if window is None and offsets is None:
            return tokens + self._embedding(grid, tokens.device, tokens.dtype)
        rows, columns = window or (slice(0, grid[0]), slice(0, grid[1]))
        largest = grid if offsets is None else (grid[0] + self.shift, grid[1] + self.shift)
        whole = self._embedding(largest, tokens.device, tokens.dtype).unflatten(1, largest)[0]
        cuts = [
            whole[rows.start + down : rows.stop + down, columns.start + right : columns.stop + right].flatten(0, 1)
            for down, right in offsets or [(0, 0)]
        ]
        return tokens + torch.stack(cuts)

    def _embedding(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """The embedding of a whole grid, (1, h w, width)."""
        if self.table is None or self.learned_grid is None:
            return self._fixed(grid, device, dtype)
        table: Tensor = self.table
        if torch.compiler.is_exporting() or grid != self.learned_grid:  # an exported program takes any grid
            image = rearrange(table, "1 (h w) c -> 1 c h w", h=self.learned_grid[0])
            resized = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False)
            table = rearrange(resized, "1 c h w -> 1 (h w) c")
        return table.to(dtype)

    def _fixed(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_exporting():  # the grid is symbolic there, and no key of a dict
            return sincos_2d(self.width, grid).to(device=device, dtype=dtype)
        key = (grid, device, dtype)
        if key not in self._cache:
            if len(self._cache) >= 8:  # a stream of ever new sizes must not fill the memory
                self._cache.clear()
            self._cache[key] = sincos_2d(self.width, grid).to(device=device, dtype=dtype)
        return self._cache[key]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}


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
        tokens = self.up(rearrange(cut(latents, window), "b c h w -> b (h w) c"))
        tokens = self.position_in(tokens, grid, window, offsets)
        for block in self.blocks:
            tokens = block(tokens)
        return self.position_out(tokens, grid, window, offsets)


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
    """The per-patch network: AdaLN residual blocks driven by a condition, and by the time where there is one.

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
        # Not zero as well: behind a zero projection it would start without a gradient.
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
