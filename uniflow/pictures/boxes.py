"""Boxes with captions, drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch.nn.functional as F
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

Color = tuple[int, int, int]


def draw_boxes(
    images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Sequence[int]], captions: Sequence[Sequence[str]]
) -> Tensor:
    """Images with boxes, each with its caption, in one colour for each label.

    Args:
        images: (B, 3, H, W), float in [0, 1].
        boxes: for each image (n, 4), left, top, right, bottom in pixels.
        labels: for each image n numbers >= 0.
        captions: for each image n texts.

    Returns:
        (B, 3, H, W), float in [0, 1]; see `enlarged` for images on which captions cannot be read.
    """
    drawn = images.detach().float().clamp(0, 1).cpu().clone()
    font = ImageFont.load_default(12)
    for number, image in enumerate(drawn):
        picture = to_pil_image(image)
        draw = ImageDraw.Draw(picture)
        for box, label, text in zip(boxes[number].tolist(), labels[number], captions[number], strict=True):
            left, top, right, bottom = box
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=label_color(label), width=2)
            _write(draw, (left, top), text, label_color(label), font, picture.size)
        drawn[number] = pil_to_tensor(picture) / 255
    return drawn


def enlarged(images: Tensor, least: int = 192) -> tuple[Tensor, int]:
    """Images (B, 3, H, W) enlarged by a whole factor to `least` pixels or more, and that factor."""
    factor = max(1, -(-least // max(images.shape[-2:])))
    return (F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images), factor


def label_color(label: int) -> Color:
    """A bright colour; labels with near numbers have different ones."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A caption above the corner of a box, moved into the image."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 3
    x = max(0.0, min(corner[0], size[0] - width))
    y = max(0.0, corner[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 2 - left, y + 1 - top), text, fill="black", font=font)
