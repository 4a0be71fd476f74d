"""Grids of patches: cutting images up, windows, position embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Rows and columns of a part of an image, in latents.
Window = tuple[slice, slice]
# For each image, the row and column of a larger grid at which its grid begins.
Offsets = list[tuple[int, int]]


def cut(latents: Tensor, window: Window | None) -> Tensor:
    """The part of (B, C, h, w) in a window; None is all of it."""
    return latents if window is None else latents[..., window[0], window[1]]


def to_tokens(image: Tensor) -> Tensor:
    """A grid of vectors as an image (B, C, h, w) -> tokens (B, h w, C), row-major."""
    return rearrange(image, "b c h w -> b (h w) c")


def to_image(tokens: Tensor, rows: int) -> Tensor:
    """Tokens (B, h w, C) of a grid of `rows` rows -> an image (B, C, h, w): the inverse of `to_tokens`."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=rows)


def image_shape(latents: Tensor, patch_size: int) -> tuple[int, int, int, int]:
    """The shape (B, 3, H, W) of the images, and of their noise, that latents (B, C, h, w) stand for."""
    return (latents.shape[0], 3, latents.shape[-2] * patch_size, latents.shape[-1] * patch_size)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad the right and bottom edge of (B, 3, H, W) to multiples of `multiple`, by repeating the edge."""
    right, bottom = -images.shape[-1] % multiple, -images.shape[-2] % multiple
    if not (right or bottom):
        return images
    # Padding by repetition is not implemented for integers; float32 holds them exactly.
    padded = F.pad(images if images.is_floating_point() else images.float(), (0, right, 0, bottom), "replicate")
    return padded.to(images.dtype)


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
        ValueError: if `width` is not a multiple of 4.
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
        ValueError: if `shift` is above 0 with a `learned_grid`.
    """

    def __init__(self, width: int, learned_grid: tuple[int, int] | None = None, shift: int = 0) -> None:
        super().__init__()
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
        """A random (row, column) offset of each image's grid, both from 0 to `shift`; in training only.

        This trains positions that only larger images have. Otherwise None, and no random number is drawn.
        """
        if not (self.training and self.shift):
            return None
        return [(row, column) for row, column in torch.randint(self.shift + 1, (images, 2)).tolist()]

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], window: Window | None = None, offsets: Offsets | None = None
    ) -> Tensor:
        """`tokens` plus the embedding of their positions.

        Args:
            tokens: (B, h w, width), or those of the window only.
            grid: (h, w) of the whole image.
            window: the rows and columns that the tokens are of; None is all of them.
            offsets: where each image's grid begins, see `draw_offsets`; None is (0, 0) for all.
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
            image = to_image(table, self.learned_grid[0])
            resized = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False)
            table = to_tokens(resized)
        return table.to(dtype)

    def _fixed(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_exporting():  # the grid is symbolic there and cannot be a key
            return sincos_2d(self.width, grid).to(device=device, dtype=dtype)
        key = (grid, device, dtype)
        if key not in self._cache:
            if len(self._cache) >= 8:  # many different sizes must not fill the memory
                self._cache.clear()
            self._cache[key] = sincos_2d(self.width, grid).to(device=device, dtype=dtype)
        return self._cache[key]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}
