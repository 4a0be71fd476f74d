"""The parts of a scene, and how a random scene is drawn.

The camera is a pinhole with a focal length of one short image side. Image positions are in short sides from the top
left corner, depths in metres: an object of radius R metres at depth z has the image radius R / z.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uniflow.data.scenes.shapes import CLASS_NAMES
from uniflow.data.scenes.textures import TEXTURES, TILE

Color = tuple[float, float, float]

COLORS: dict[str, Color] = {
    "red": (0.83, 0.13, 0.13),
    "orange": (0.97, 0.52, 0.07),
    "yellow": (0.97, 0.86, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.18, 0.78, 0.82),
    "blue": (0.13, 0.28, 0.82),
    "purple": (0.50, 0.18, 0.68),
    "pink": (0.97, 0.50, 0.70),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.11),
}
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checks", "dots", "noise", "ground")
MAX_OBJECTS = 5
WALL_DEPTH = 8.0
SKY_DEPTH = 10.0
CAMERA_HEIGHT = 0.5
EDGE_MARGIN = 0.85  # centres stay this many radii away from the frame's edges
_RADIUS = 0.3  # mean radius of an object in metres
_LIGHTS = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0))  # where the light comes from, (x, y) in image directions


@dataclass(frozen=True)
class SceneObject:
    """One flat object that faces the camera.

    Attributes:
        shape: index into `CLASS_NAMES`.
        color: index into `COLOR_NAMES`.
        rgb: the colour itself and the texture's second colour, channels in [0, 1].
        texture: one of `TEXTURES`, with `frequency` periods per radius and an `offset` (u, v).
        x, y: centre at time 0 in short image sides from the top left corner.
        radius: image radius in short sides.
        depth: distance from the camera in metres.
        rotation: angle at time 0 in radians.
        stretch: factor along the shape's own x axis; its y axis has the inverse.
        bevel: width of the lit edge as a share of the radius.
        velocity: (x, y) in short sides per frame; `spin` in radians per frame.
    """

    shape: int
    color: int
    rgb: tuple[Color, Color]
    texture: str
    frequency: float
    offset: tuple[float, float]
    x: float
    y: float
    radius: float
    depth: float
    rotation: float
    stretch: float
    bevel: float
    velocity: tuple[float, float]
    spin: float


@dataclass(frozen=True)
class Scene:
    """Everything that `Renderer` needs to render an image or a clip.

    Attributes:
        objects: one to `MAX_OBJECTS` objects, nearest first; the first is the main object, nearest and largest.
        extent: height and width of the image in short sides; the smaller one is 1.
        background: one of `BACKGROUNDS`, with its colours (a wall's two; the sky's and the ground's two each).
        texture: pattern of the ground plane.
        frequency, angle, offset: of the background's pattern, in periods per short side, radians and short sides.
        horizon: height of the horizon in short sides from the top (background "ground" only).
        light: direction that the light comes from, a step in pixels.
        shadow: how dark shadows are, in [0, 1].
        tint: factor of each channel.
        grain: standard deviation of the pixel noise, and its offset in the noise tile.
    """

    objects: tuple[SceneObject, ...]
    extent: tuple[float, float]
    background: str
    colors: tuple[Color, ...]
    texture: str
    frequency: float
    angle: float
    offset: tuple[float, float]
    horizon: float
    light: tuple[int, int]
    shadow: float
    tint: Color
    grain: float
    grain_offset: tuple[int, int]

    @property
    def label(self) -> int:
        """The shape class of the main object."""
        return self.objects[0].shape


class _Draw:
    """Uniform random numbers, drawn in blocks because single draws from numpy are slow."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._block:
            self._block = self._rng.random(192).tolist()
        return low + (high - low) * self._block.pop()

    def integer(self, count: int) -> int:
        return int(self(0, count))

    def jitter(self, color: Color, amount: float) -> Color:
        r, g, b = (min(max(c + self(-amount, amount), 0.02), 0.98) for c in color)
        return r, g, b


def sample_scene(seed: int, index: int, stream: int = 0, extent: tuple[float, float] = (1.0, 1.0)) -> Scene:
    """Draw scene number `index` of a stream. Equal arguments give equal scenes, on any machine.

    Args:
        seed: any integer >= 0.
        index: number of the scene, from 0.
        stream: different streams of one seed share no scene (training, validation and test have one each).
        extent: height and width of the image in short sides.
    """
    draw = _Draw(np.random.default_rng((seed, stream, index)))
    background = "ground" if draw() < 0.35 else BACKGROUNDS[draw.integer(len(BACKGROUNDS) - 1)]
    colors = _background_colors(draw, background)
    horizon = draw(0.3, 0.48) * extent[0]
    return Scene(
        objects=_sample_objects(draw, extent, horizon if background == "ground" else None, colors),
        extent=extent,
        background=background,
        colors=colors,
        texture=TEXTURES[draw.integer(len(TEXTURES))],
        frequency=draw(2.5, 8.0),
        angle=draw(0, 2 * math.pi),
        offset=(draw(0, 8), draw(0, 8)),
        horizon=horizon,
        light=_LIGHTS[draw.integer(len(_LIGHTS))],
        shadow=draw(0.25, 0.6),
        tint=(draw(0.88, 1.04), draw(0.92, 1.02), draw(0.88, 1.04)),
        grain=draw(0.0, 0.03),
        grain_offset=(draw.integer(TILE), draw.integer(TILE)),
    )


def _background_colors(draw: _Draw, background: str) -> tuple[Color, ...]:
    """Muted colours: two similar ones for a wall; two for the sky and two for the ground of a landscape."""
    if background == "ground":
        dusk = draw() ** 2
        zenith: Color = (draw(0.2, 0.5), draw(0.45, 0.68) - 0.22 * dusk, draw(0.75, 0.95) - 0.35 * dusk)
        haze = draw.jitter((0.8 + 0.1 * dusk, 0.82 - 0.12 * dusk, 0.84 - 0.25 * dusk), 0.08)
        ground = colorsys.hsv_to_rgb(draw(), draw(0.05, 0.45), draw(0.35, 0.75))
        return draw.jitter(zenith, 0.05), haze, ground, _shaded(ground, draw(0.6, 0.85))
    first = colorsys.hsv_to_rgb(draw(), draw(0.0, 0.5), draw(0.2, 0.95))
    second = colorsys.hsv_to_rgb(draw(), draw(0.0, 0.5), draw(0.2, 0.95))
    mix = draw(0.2, 0.6)
    r, g, b = (a + mix * (b - a) for a, b in zip(first, second, strict=True))
    return first, (r, g, b)


def _shaded(color: Color, factor: float) -> Color:
    """A darker colour for a factor below 1, a lighter one above 1 (2 is white)."""
    r, g, b = (c * factor if factor <= 1 else c + (factor - 1) * (1 - c) for c in color)
    return r, g, b


def _sample_objects(
    draw: _Draw, extent: tuple[float, float], horizon: float | None, background: Sequence[Color]
) -> tuple[SceneObject, ...]:
    """Place objects from near to far, so that each stays recognisable."""
    objects: list[SceneObject] = []
    for _ in range(1 + draw.integer(MAX_OBJECTS)):
        for _ in range(24):
            radius = draw(0.2, 0.33) if not objects else objects[0].radius * draw(0.3, 0.62)
            depth = _RADIUS * math.exp(draw(-0.14, 0.14)) / radius
            margin = radius * EDGE_MARGIN
            x, y = draw(margin, extent[1] - margin), draw(margin, extent[0] - margin)
            if horizon is not None:
                # Most objects stand on the ground, the others hover above it.
                floor = min(horizon + CAMERA_HEIGHT / depth - 0.8 * radius, extent[0] - margin)
                y = floor if not objects or draw() < 0.65 else draw(margin, max(floor, margin))
            if _hidden(x, y, radius, objects) < 0.55:
                break
        else:
            continue
        while True:
            shape, color = draw.integer(len(CLASS_NAMES)), draw.integer(len(COLOR_NAMES))
            rgb = draw.jitter(COLORS[COLOR_NAMES[color]], 0.05)
            clear = min(math.dist(rgb, other) for other in background) > 0.35
            if clear and all((o.shape, o.color) != (shape, color) for o in objects):
                break
        light = sum(rgb) > 1.2
        objects.append(
            SceneObject(
                shape=shape,
                color=color,
                rgb=(rgb, _shaded(rgb, draw(0.55, 0.75) if light else draw(1.2, 1.35))),
                texture=TEXTURES[draw.integer(len(TEXTURES))],
                frequency=draw(0.9, 2.6),
                offset=(draw(0, 8), draw(0, 8)),
                x=x,
                y=y,
                radius=radius,
                depth=depth,
                rotation=draw(0, 2 * math.pi),
                stretch=draw(0.9, 1.1),
                bevel=draw(0.1, 0.5),
                velocity=(draw(-0.03, 0.03), draw(-0.03, 0.03) if horizon is None else draw(-0.004, 0.004)),
                spin=draw(-0.15, 0.15),
            )
        )
    return tuple(objects)


def _hidden(x: float, y: float, radius: float, nearer: Sequence[SceneObject]) -> float:
    """Roughly which share of a disc's width is hidden by nearer objects."""
    return sum(max(0.0, (o.radius + radius - math.hypot(x - o.x, y - o.y)) / (2 * radius)) for o in nearer)
