"""Renders scenes with numpy: signed distance functions, drawn from far to near, each object in its own window."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uniflow.data.scenes.scene import (
    CAMERA_HEIGHT,
    EDGE_MARGIN,
    SKY_DEPTH,
    WALL_DEPTH,
    Scene,
    SceneObject,
    sample_scene,
)
from uniflow.data.scenes.shapes import CLASS_NAMES, SHAPES
from uniflow.data.scenes.textures import TILE, grain_tile, pattern

MOST_SIDE = 4096  # pixels; the drawing is finer, and in memory as float32

Array = NDArray[np.floating]
_SHAPE_FUNCTIONS = tuple(SHAPES[name] for name in CLASS_NAMES)
_RELIEF = 0.15  # metres by which the middle of an object bulges towards the camera


@dataclass
class Rendering:
    """A rendered image and its labels.

    Attributes:
        scene: the scene that was rendered.
        image: RGB pixels (3, H, W), uint8.
        instances: (H, W) uint8; 0 is background, i + 1 is `scene.objects[i]`.
        depth: distance from the camera in metres, (H, W) float32, at most `SKY_DEPTH`.
        silhouettes: pixels inside the frame that each object would cover without other objects in front of it.
    """

    scene: Scene
    image: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    depth: Array
    silhouettes: tuple[int, ...]

    @property
    def label(self) -> int:
        """Shape class of the main object, an index into `CLASS_NAMES`."""
        return self.scene.label

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Semantic mask (H, W): 0 is background, k + 1 is shape class k."""
        classes = np.array([0, *(o.shape + 1 for o in self.scene.objects)], dtype=np.uint8)
        return classes[self.instances]

    @functools.cached_property
    def visibility(self) -> Array:
        """Visible part of each object's silhouette inside the frame, (n,) in [0, 1]."""
        visible = np.bincount(self.instances.ravel(), minlength=len(self.scene.objects) + 1)[1:]
        return (visible / np.maximum(self.silhouettes, 1)).astype(np.float32)

    @property
    def boxes(self) -> Array:
        """Boxes (n, 4) around the visible pixels, x0 y0 x1 y1 in pixels; all zero for an object that is not visible."""
        boxes = np.zeros((len(self.scene.objects), 4), dtype=np.float32)
        for i in range(len(boxes)):
            inside = self.instances == i + 1
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            if len(rows):
                boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


class Renderer:
    """Renders scenes at one image size.

    Args:
        size: height and width in pixels, or one number for a square.

    Raises:
        ValueError: if a side is shorter than 16 pixels, or one side is more than 4 times the other.
    """

    def __init__(self, size: int | tuple[int, int] = 64) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 16 or max(height, width) > 4 * min(height, width):
            raise ValueError(f"size must be at least 16 pixels and at most 4 : 1, got {height} x {width}")
        if max(height, width) > MOST_SIDE:
            raise ValueError(f"size must be at most {MOST_SIDE} pixels, got {height} x {width}")
        self.height, self.width, self.short = height, width, min(height, width)
        self.extent = (height / self.short, width / self.short)
        # Objects extend beyond the frame; on a wider canvas no window has to be clipped.
        self._pad = math.ceil(0.75 * self.short)
        self._rows = ((np.arange(height, dtype=np.float32) + 0.5) / self.short)[:, None]
        self._columns = ((np.arange(width, dtype=np.float32) + 0.5) / self.short)[None]

    def sample(self, seed: int, index: int, stream: int = 0) -> Rendering:
        """Render scene number `index` of a stream; see `sample_scene`."""
        return self.render(sample_scene(seed, index, stream, self.extent))

    def clip(self, scene: Scene, frames: int) -> list[Rendering]:
        """Render a scene at times 0 to `frames` - 1; an object keeps its instance id."""
        return [self.render(scene, time) for time in range(frames)]

    def render(self, scene: Scene, time: float = 0.0) -> Rendering:
        """Render a scene `time` frames after its start."""
        pad = self._pad
        # Zeros, because objects are also blended over the margin.
        shape = (self.height + 2 * pad, self.width + 2 * pad)
        image = np.zeros((3, *shape), dtype=np.float32)
        depth = np.zeros(shape, dtype=np.float32)
        instances = np.zeros(shape, dtype=np.uint8)
        frame = (slice(pad, pad + self.height), slice(pad, pad + self.width))
        self._draw_background(scene, image[:, *frame], depth[frame])
        if scene.background == "ground":
            for o in scene.objects:
                self._draw_ground_shadow(scene, o, time, image)
        silhouettes = [0] * len(scene.objects)
        for i in reversed(range(len(scene.objects))):
            silhouettes[i] = self._draw_object(scene, i, time, image, depth, instances)
        pixels = image[:, *frame] * np.array([c * 255 for c in scene.tint], dtype=np.float32)[:, None, None]
        if scene.grain > 0:
            pixels += _tile_window(grain_tile(), scene.grain_offset, self.height, self.width) * (scene.grain * 255)
        np.clip(pixels, 0, 255, out=pixels)
        return Rendering(
            scene, pixels.astype(np.uint8), instances[frame].copy(), depth[frame].copy(), tuple(silhouettes)
        )

    def _draw_background(self, scene: Scene, image: Array, depth: Array) -> None:
        x, y = self._columns, self._rows
        if scene.background == "ground":
            self._draw_ground(scene, image, depth)
            return
        depth[:] = WALL_DEPTH
        cos, sin = math.cos(scene.angle), math.sin(scene.angle)
        mix: Array | None
        if scene.background == "gradient":
            mix = np.clip((x / self.extent[1] - 0.5) * cos + (y / self.extent[0] - 0.5) * sin + 0.5, 0, 1)
        else:
            scale = 0.15 if scene.background == "noise" else 1.0
            u, v = x * cos + y * sin + scene.offset[0], y * cos - x * sin + scene.offset[1]
            mix = pattern(scene.background, u, v, scene.frequency * scale, 1 / self.short)
        for channel, first, second in zip(image, *scene.colors, strict=True):
            channel[:] = first if mix is None else first + (second - first) * mix

    def _draw_ground(self, scene: Scene, image: Array, depth: Array) -> None:
        """A sky that fades into haze, and a textured plane `CAMERA_HEIGHT` below the camera."""
        split = min(max(round(scene.horizon * self.short), 1), self.height - 1)
        zenith, haze, first, second = (np.array(c, dtype=np.float32)[:, None, None] for c in scene.colors)
        rise = np.clip(1 - self._rows[:split] / scene.horizon, 0, 1)
        image[:, :split] = haze + (zenith - haze) * rise
        depth[:split] = SKY_DEPTH
        z = np.minimum(CAMERA_HEIGHT / np.maximum(self._rows[split:] - scene.horizon, 1e-3), SKY_DEPTH)
        depth[split:] = z
        u = (self._columns - self.extent[1] / 2) * z + scene.offset[0]
        scale = 0.2 if scene.texture == "noise" else 0.5
        mix = pattern(scene.texture, u, z + scene.offset[1], scene.frequency * scale, 1 / self.short)
        ground: Array
        if mix is None or scene.texture == "gradient":
            ground = np.broadcast_to(first, image[:, split:].shape)
        else:
            # Far away a period is smaller than a pixel, so the pattern fades to its mean.
            fade = np.clip(2.5 - z * z * (scene.frequency * scale * 5 / self.short), 0, 1)
            ground = first + (second - first) * (0.5 + (mix - 0.5) * fade)
        image[:, split:] = ground + (haze - ground) * _haze(z)

    def _draw_object(
        self, scene: Scene, number: int, time: float, image: Array, depth: Array, instances: NDArray[np.uint8]
    ) -> int:
        """Draw one object over what is there and return how many pixels of the frame it covers."""
        o = scene.objects[number]
        px, py = self._position(o, time)
        radius = o.radius * self.short
        half = math.ceil(radius * 1.3) + 2
        left, top = int(px) - half, int(py) - half
        window = (slice(top, top + 2 * half + 1), slice(left, left + 2 * half + 1))
        # The object's own coordinates: rotated, stretched, in radii.
        angle = o.rotation + o.spin * time
        cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
        steps = np.arange(2 * half + 1, dtype=np.float32)
        dx: Array = (steps + (left + 0.5 - px))[None]
        dy: Array = (steps + (top + 0.5 - py))[:, None]
        u, v = (dx * cos + dy * sin) / o.stretch, (dy * cos - dx * sin) * o.stretch
        distance = _SHAPE_FUNCTIONS[o.shape](u, v)
        if scene.background != "ground":
            # The circle keeps the shadow inside the window: distances grow slowly beyond the tips of a star.
            outline = np.maximum(distance, np.sqrt(u * u + v * v) - 1.05)
            self._draw_shadow(scene, radius, outline, image, top, left)

        coverage = np.clip(0.5 - distance * radius, 0, 1)
        flat = np.clip(distance * (-1 / o.bevel), 0, 1)
        shade = 1 + _slope(distance, scene.light, radius) * (1 - flat) * 0.4
        shade += (dx * scene.light[0] + dy * scene.light[1]) * (0.12 / radius)
        mix = pattern(o.texture, u + o.offset[0] * (o.texture != "gradient"), v + o.offset[1], o.frequency, 1 / radius)
        haze = float(_haze(np.float32(o.depth))) if scene.background == "ground" else 0.0
        for channel, first, second, air in zip(image, *o.rgb, scene.colors[1], strict=True):
            color = shade * first if mix is None else shade * (first + (second - first) * mix)
            if haze:
                color += (air - color) * haze
            target = channel[window]
            target += (color - target) * coverage
        inside = coverage > 0.5
        instances[window][inside] = number + 1
        np.copyto(depth[window], o.depth - _RELIEF * flat, where=inside)
        pad = self._pad
        rows = slice(max(pad - top, 0), max(pad + self.height - top, 0))
        columns = slice(max(pad - left, 0), max(pad + self.width - left, 0))
        return int(np.count_nonzero(inside[rows, columns]))

    def _draw_shadow(self, scene: Scene, radius: float, outline: Array, image: Array, top: int, left: int) -> None:
        """Darken the wall and farther objects: the outline, blurred and moved away from the light."""
        top, left = top - round(scene.light[1] * 0.2 * radius), left - round(scene.light[0] * 0.2 * radius)
        height, width = outline.shape
        window = image[:, top : top + height, left : left + width]
        window *= 1 - np.clip(0.6 - outline * 2.4, 0, 1) * scene.shadow

    def _draw_ground_shadow(self, scene: Scene, o: SceneObject, time: float, image: Array) -> None:
        """A soft ellipse where the object stands, or below an object that hovers."""
        px, _ = self._position(o, time)
        py = (scene.horizon + CAMERA_HEIGHT / o.depth) * self.short + self._pad
        a, b = 1.2 * o.radius * self.short, 0.35 * o.radius * self.short
        top, bottom = max(math.floor(py - b), 0), min(math.ceil(py + b), image.shape[1])
        left, right = max(math.floor(px - a), 0), min(math.ceil(px + a), image.shape[2])
        x = (np.arange(left, right, dtype=np.float32) + (0.5 - px)) * (1 / a)
        y = (np.arange(top, bottom, dtype=np.float32) + (0.5 - py)) * (1 / b)
        image[:, top:bottom, left:right] *= 1 - np.clip(1 - x[None] ** 2 - y[:, None] ** 2, 0, 1) * scene.shadow

    def _position(self, o: SceneObject, time: float) -> tuple[float, float]:
        """Centre on the canvas in pixels; objects bounce off the frame's edges."""
        margin = EDGE_MARGIN * o.radius
        x = _bounce(o.x + o.velocity[0] * time, margin, self.extent[1] - margin)
        y = _bounce(o.y + o.velocity[1] * time, margin, self.extent[0] - margin)
        return x * self.short + self._pad, y * self.short + self._pad


def _slope(distance: Array, light: tuple[int, int], radius: float) -> Array:
    """How far the outline next to each pixel faces the light, about -1 to 1."""
    x, y = light
    rows, columns = distance.shape
    slope = np.zeros_like(distance)
    here = slope[max(y, 0) : rows + min(y, 0), max(x, 0) : columns + min(x, 0)]
    behind = distance[max(-y, 0) : rows - max(y, 0), max(-x, 0) : columns - max(x, 0)]
    ahead = distance[max(y, 0) : rows + min(y, 0), max(x, 0) : columns + min(x, 0)]
    np.subtract(ahead, behind, out=here)
    slope *= radius / math.hypot(x, y)
    return slope


def _bounce(x: float, low: float, high: float) -> float:
    period = 2 * (high - low)
    phase = (x - low) % period
    return low + min(phase, period - phase)


def _haze(depth: Array | np.float32) -> Array:
    """Share of the light that comes from the air in between."""
    return 1 - np.exp(depth * -0.09)


def _tile_window(tile: Array, offset: tuple[int, int], height: int, width: int) -> Array:
    """A (height, width) window of an endlessly repeated tile."""
    rows = (np.arange(height) + offset[0]) & (TILE - 1)
    columns = (np.arange(width) + offset[1]) & (TILE - 1)
    return tile[rows[:, None], columns]
