"""Surface patterns: functions of the surface coordinates with values in [0, 1] that mix two colours."""

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
TEXTURES: tuple[str, ...] = ("plain", "stripes", "checks", "dots", "gradient", "noise")
TILE = 256


@functools.cache
def noise_tile() -> Array:
    """A periodic (TILE, TILE) image of fractal noise with values in [0, 1], the same in every process."""
    rng = np.random.default_rng(20251010)
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]) * TILE
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / np.maximum(frequency, 4) ** 1.4
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.clip(0.5 + 0.22 * field / field.std(), 0, 1).astype(np.float32)


@functools.cache
def grain_tile() -> Array:
    """A (TILE, TILE) image of white Gaussian noise with unit variance, the same in every process."""
    return np.random.default_rng(20251011).standard_normal((TILE, TILE)).astype(np.float32)


def pattern(kind: str, u: Array, v: Array, frequency: float, pixel: float) -> Array | None:
    """Evaluate a pattern.

    Args:
        kind: one of `TEXTURES`.
        u, v: surface coordinates, of shapes that broadcast against each other.
        frequency: periods per unit of u and v.
        pixel: size of a pixel in units of u, for anti-aliasing.

    Returns:
        Values in [0, 1], or None for a plain surface.
    """
    sharpness = 0.5 / max(frequency * pixel, 1e-6)
    if kind == "stripes":
        return np.clip(_wave(u * frequency) * sharpness * 0.5 + 0.5, 0, 1)
    if kind == "checks":
        return np.clip(_wave(u * frequency) * _wave(v * frequency) * sharpness * 0.5 + 0.5, 0, 1)
    if kind == "dots":
        a, b = u * frequency, v * frequency
        a, b = a - np.rint(a), b - np.rint(b)
        return np.clip((0.11 - (a * a + b * b)) * (sharpness * 3) + 0.5, 0, 1)
    if kind == "gradient":
        return np.clip(u * 0.5 + 0.5, 0, 1)
    if kind == "noise":
        scale = frequency * 24
        rows, columns = (v * scale).astype(np.int32) & (TILE - 1), (u * scale).astype(np.int32) & (TILE - 1)
        return noise_tile()[rows, columns]
    return None


def _wave(x: Array) -> Array:
    """A triangle wave of period 1 between -1 and 1."""
    return np.abs(x - np.rint(x)) * 4 - 1
