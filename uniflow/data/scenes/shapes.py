"""The shape classes as signed distance functions: negative inside, 0 on the outline, positive outside.

Coordinates are the object's own: the shape fills about the unit circle, x points right and y points down. Distances are
exact near the outline, which is all that anti-aliasing, bevels and shadows need.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Shape = Callable[[Array, Array], Array]


def _half_planes(x: Array, y: Array, corners: int, apothem: float) -> Array:
    """Distances to the lines through the sides of a regular polygon with one corner up, (corners, h, w)."""
    angles = math.pi / 2 + math.pi / corners + 2 * math.pi / corners * np.arange(corners)
    normals = np.stack([np.cos(angles), -np.sin(angles)], axis=1).astype(np.float32)
    return (normals[:, :1, None] * x + normals[:, 1:, None] * y) - np.float32(apothem)


def circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - 0.88


def square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.76


def triangle(x: Array, y: Array) -> Array:
    return _half_planes(x, y, 3, 0.56).max(axis=0)


def pentagon(x: Array, y: Array) -> Array:
    return _half_planes(x, y, 5, 0.78).max(axis=0)


def star(x: Array, y: Array) -> Array:
    """A pentagram: the points outside of at most one of five half planes, hence the second largest distance."""
    return np.partition(_half_planes(x, y, 5, 0.37), 3, axis=0)[3]


def ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - 0.68) - 0.24


def cross(x: Array, y: Array) -> Array:
    a, b = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(a - 0.95, b - 0.32), np.maximum(a - 0.32, b - 0.95))


def heart(x: Array, y: Array) -> Array:
    """A square on its corner with a half disc on each of its two upper sides."""
    h = 0.56
    p, q = (y - 0.12 + x) * math.sqrt(0.5), (y - 0.12 - x) * math.sqrt(0.5)
    discs = np.minimum((p + h) ** 2 + q * q, p * p + (q + h) ** 2)
    return np.minimum(np.maximum(np.abs(p), np.abs(q)), np.sqrt(discs)) - h


def crescent(x: Array, y: Array) -> Array:
    x = x - 0.18
    return np.maximum(np.sqrt(x * x + y * y) - 0.98, 0.76 - np.sqrt((x - 0.46) ** 2 + y * y))


def arrow(x: Array, y: Array) -> Array:
    a = np.abs(x)
    head = np.maximum(y + 0.02, (a - 0.85 * (y + 1.0)) * (1 / math.hypot(1, 0.85)))
    return np.minimum(head, np.maximum(a - 0.27, np.abs(y - 0.4) - 0.55))


def semicircle(x: Array, y: Array) -> Array:
    y = y - 0.45
    return np.maximum(np.sqrt(x * x + y * y) - 1.05, y)


def drop(x: Array, y: Array) -> Array:
    """A disc and the two tangents to it from a point above."""
    sin = 0.64 / 1.4
    cos = math.sqrt(1 - sin * sin)
    tip = np.maximum(np.abs(x) * cos - (y + 1.05) * sin, y + (1.05 - 1.4 * cos * cos))
    return np.minimum(tip, np.sqrt(x * x + (y - 0.35) ** 2) - 0.64)


SHAPES: dict[str, Shape] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "pentagon": pentagon,
    "star": star,
    "ring": ring,
    "cross": cross,
    "heart": heart,
    "crescent": crescent,
    "arrow": arrow,
    "semicircle": semicircle,
    "drop": drop,
}
CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
