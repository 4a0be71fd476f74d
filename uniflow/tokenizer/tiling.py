"""Decoding by overlapping tiles: large images in bounded memory."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from uniflow.decoders.base import PixelDecoder
from uniflow.layers.grid import cut


def decode_tiled(
    decoder: PixelDecoder,
    latents: Tensor,
    *,
    tile: int,
    overlap: int | None = None,
    global_context: bool = False,
    steps: int | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decode tile by tile; where tiles overlap, one fades linearly into the next.

    A tile knows its place in the picture, and its noise is cut from one drawing for all of it. So the result differs
    from that of `decode` only by what a decoder would have seen beyond a tile's edge. With `global_context` the part of
    a decoder that looks at the whole picture (its `context`) does so, and only the rest goes by tiles: decoders that
    then paint each patch on its own give the picture of `decode`, for more memory.

    Args:
        decoder: the decoder.
        latents: (B, C, h, w).
        tile: side of a tile, in latents.
        overlap: latents that neighbouring tiles share, below `tile`; None is a quarter of the tile. The last tile of
            a row or column may share more.
        global_context: whether a decoder's global part sees the whole picture at once.
        steps: sampler steps of a flow decoder; None is the decoder's own number.
        noise: standard normal start (B, 3, H, W) in place of a drawn one.
        generator: source of the drawn noise.

    Returns:
        Images (B, 3, h * patch_size, w * patch_size), nominally in [0, 1], not clamped.

    Raises:
        ValueError: for a tile below 1, an overlap outside [0, tile), or misshapen noise.
    """
    overlap = tile // 4 if overlap is None else overlap
    if tile < 1 or not 0 <= overlap < tile:
        raise ValueError(f"tiles need a side of at least 1 and an overlap in [0, tile), got {tile} and {overlap}")
    p, (height, width) = decoder.spec.patch_size, latents.shape[-2:]
    if noise is None:
        noise = decoder.draw_noise(latents, generator)
    elif tuple(noise.shape[-2:]) != (height * p, width * p):
        raise ValueError(f"noise must have the images' size {height * p} x {width * p}, got {tuple(noise.shape)}")
    context = decoder.context(latents) if global_context else None
    total: Tensor | None = None
    weights = torch.zeros(height * p, width * p, device=latents.device)
    for rows, columns in itertools.product(_spans(height, tile, overlap), _spans(width, tile, overlap)):
        y, x = (slice(span.start * p, span.stop * p) for span in (rows, columns))
        painted = decoder.decode_context(
            decoder.context(latents, (rows, columns)) if context is None else cut(context, (rows, columns)),
            steps=steps,
            noise=None if noise is None else noise[..., y, x],
            generator=generator,
        )
        down, across = _fade(rows, height, overlap, p), _fade(columns, width, overlap, p)
        fade = (down[:, None] * across).to(weights.device)
        if total is None:
            total = painted.new_zeros(*painted.shape[:2], height * p, width * p)
        total[..., y, x] += painted * fade.to(painted.dtype)
        weights[y, x] += fade
    assert total is not None  # latents have at least one place, so there is a tile
    return total.div_(weights)


def _spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Where tiles lie along a side of `length` latents; the last one ends with it."""
    if length <= tile:
        return [slice(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [slice(start, start + tile) for start in starts]


def _fade(span: slice, length: int, overlap: int, patch_size: int) -> Tensor:
    """Weights of a tile's pixels along one side: 1, falling towards each edge that is not the picture's."""
    pixels = (span.stop - span.start) * patch_size
    weights = torch.ones(pixels)
    ramp = overlap * patch_size
    if ramp:
        rising = ((torch.arange(pixels) + 0.5) / ramp).clamp_max(1)
        if span.start > 0:
            weights = weights * rising
        if span.stop < length:
            weights = weights * rising.flip(0)
    return weights
