"""The images of docs/scenes.md: `python -m uniflow.data.scenes.gallery docs/images`."""

import argparse
import colorsys
import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uniflow.data.scenes.language import caption, questions
from uniflow.data.scenes.renderer import Renderer, Rendering
from uniflow.data.scenes.scene import SKY_DEPTH, Color
from uniflow.data.scenes.shapes import CLASS_NAMES

Pixels = NDArray[np.uint8]  # (h, w, 3)
_GAP = 4


def main(arguments: list[str] | None = None) -> None:
    """Write scenes.png, scenes_labels.png and scenes_clip.png into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    images = {
        "scenes": contact_sheet(options.seed),
        "scenes_labels": label_rows(options.seed),
        "scenes_clip": clip_strip(options.seed),
    }
    for name, image in images.items():
        path = options.out / f"{name}.png"
        Image.fromarray(image).save(path, optimize=True)
        print(path)


def contact_sheet(seed: int, rows: int = 6, columns: int = 8, size: int = 96) -> Pixels:
    """The first scenes of a seed."""
    renderer = Renderer(size)
    images = [_rgb(renderer.sample(seed, i)) for i in range(rows * columns)]
    return _grid([images[r * columns : (r + 1) * columns] for r in range(rows)])


def label_rows(seed: int, numbers: tuple[int, ...] = (9, 44, 75), size: int = 224) -> Pixels:
    """For each scene: image, semantic mask, depth map, boxes, caption and questions."""
    renderer = Renderer(size)
    rows = []
    for number in numbers:
        drawn = renderer.sample(seed, number)
        depth = np.repeat((255 * (1 - drawn.depth / SKY_DEPTH) ** 1.5).astype(np.uint8)[..., None], 3, axis=2)
        rows.append([_rgb(drawn), _mask(drawn), depth, _boxes(drawn), _text(drawn, number, 2 * size, size)])
    return _grid(rows)


def clip_strip(seed: int, number: int = 62, frames: int = 8, every: int = 3, size: int = 112) -> Pixels:
    """Every third frame of a clip; below it the instances, each with the same colour in all frames."""
    renderer = Renderer(size)
    shown = renderer.clip(renderer.sample(seed, number).scene, frames * every)[::every]
    palette = np.array([(40, 40, 44), *(_color(i / 5) for i in range(5))], dtype=np.uint8)
    return _grid([[_rgb(f) for f in shown], [palette[f.instances] for f in shown]])


def _rgb(drawn: Rendering) -> Pixels:
    return drawn.image.transpose(1, 2, 0)


def _color(hue: float) -> tuple[int, ...]:
    color: Color = colorsys.hsv_to_rgb(hue, 0.6, 0.95)
    return tuple(round(255 * c) for c in color)


def _class_color(label: int) -> tuple[int, ...]:
    return _color(label * 5 % len(CLASS_NAMES) / len(CLASS_NAMES))


def _mask(drawn: Rendering) -> Pixels:
    palette = np.array([(40, 40, 44), *(_class_color(k) for k in range(len(CLASS_NAMES)))], dtype=np.uint8)
    return palette[drawn.mask]


def _boxes(drawn: Rendering) -> Pixels:
    image = Image.fromarray(_rgb(drawn))
    draw = ImageDraw.Draw(image)
    for o, box, visible in zip(drawn.scene.objects, drawn.boxes.tolist(), drawn.visibility, strict=True):
        x0, y0, x1, y1 = box
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_class_color(o.shape), width=2)
        words = f"{CLASS_NAMES[o.shape]} {100 * visible:.0f}%"
        corner = (min(x0 + 2, image.width - 6 * len(words) - 4), y0 - 12 if y0 > 12 else y1 - 13)
        draw.rectangle(draw.textbbox(corner, words), fill=(0, 0, 0))
        draw.text(corner, words, fill=_class_color(o.shape))
    return np.asarray(image)


def _text(drawn: Rendering, number: int, width: int, height: int) -> Pixels:
    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(13)
    said = caption(drawn.scene, np.random.default_rng(number))
    asked = questions(drawn.scene, np.random.default_rng(number))
    lines = textwrap.wrap(f"{said}.", 62)
    for q in asked:
        lines += ["", *textwrap.wrap(f"{q.question}  {q.answer.upper()}", 62)]
    ImageDraw.Draw(image).multiline_text((10, 8), "\n".join(lines), fill="black", font=font, spacing=2)
    return np.asarray(image)


def _grid(rows: list[list[Pixels]]) -> Pixels:
    """Images in rows with white gaps."""
    joined = []
    for row in rows:
        padded = [np.pad(p, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for p in row]
        joined.append(np.concatenate(padded, axis=1))
    return np.concatenate(joined, axis=0)


if __name__ == "__main__":
    main()
