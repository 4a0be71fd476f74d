"""Every odd kind of file is converted or refused with one clear error."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from uniflow.data.reading import ImageReadError, read_image

HEIGHT, WIDTH = 12, 20
COLOUR = (200, 100, 40)


def encoded(image: Image.Image, kind: str, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), value)


def read_colour(data: bytes) -> list[int]:
    image = read_image(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, HEIGHT, WIDTH)
    return image[:, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_read_as_it_is(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = read_image(encoded(Image.fromarray(pixels), kind))
    assert (image.permute(1, 2, 0).numpy() == pixels).all()


CONVERTED = {
    "grey": (encoded(flat("L", 77), "PNG"), (77, 77, 77)),
    "grey with alpha": (encoded(flat("LA", (100, 0)), "PNG"), (255, 255, 255)),
    "1-bit": (encoded(flat("1", 1), "PNG"), (255, 255, 255)),
    "16-bit grey PNG": (encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0x80FF, np.uint16)), "PNG"), (128,) * 3),
    "16-bit grey TIFF": (encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0x4000, np.uint16)), "TIFF"), (64,) * 3),
    "32-bit of 16-bit range": (encoded(flat("I", 0x2000), "TIFF"), (32,) * 3),
    "palette": (encoded(flat("RGB", COLOUR).quantize(), "PNG"), COLOUR),
    "GIF": (encoded(flat("RGB", COLOUR).quantize(), "GIF"), COLOUR),
    "palette with transparency": (
        encoded(flat("P", 0), "PNG", transparency=0),
        (255, 255, 255),
    ),
    "RGB with a transparent colour": (encoded(flat("RGB", COLOUR), "PNG", transparency=COLOUR), (255, 255, 255)),
    "half transparent": (encoded(flat("RGBA", (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
    "CMYK TIFF": (encoded(flat("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    "CMYK JPEG": (encoded(flat("CMYK", (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
    "Lab": (encoded(flat("LAB", (255, 128, 128)), "TIFF"), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_pixels_are_converted(kind: str) -> None:
    data, expected = CONVERTED[kind]
    assert np.abs(np.subtract(read_colour(data), expected)).max() <= 2


def test_one_pixel_is_an_image() -> None:
    assert read_image(encoded(Image.new("RGB", (1, 1), COLOUR), "PNG")).flatten().tolist() == list(COLOUR)


def test_orientation_is_applied() -> None:
    image = flat("RGB", COLOUR)
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    turned = read_image(encoded(image, "PNG", exif=exif))
    assert turned.shape == (3, WIDTH, HEIGHT)
    assert turned[:, 0, -1].tolist() == [0, 0, 0]


def test_draft_mode_keeps_the_sides_asked_for() -> None:
    data = encoded(Image.new("RGB", (640, 400), COLOUR), "JPEG")
    assert read_image(data, min_side=100).shape == (3, 100, 160)
    assert read_image(data, min_side=101).shape == (3, 200, 320)
    assert read_image(data).shape == (3, 400, 640)


def noise_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG")


def bomb() -> bytes:
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (60000).to_bytes(4, "little") * 2  # the header's width and height
    return bytes(data)


REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all", "not an image"),
    "EPS": (encoded(flat("RGB", COLOUR), "EPS"), "not an image"),
    "truncated JPEG": (noise_jpeg()[:2000], "truncated"),
    "truncated PNG": (encoded(flat("RGB", COLOUR), "PNG")[:60], "Error"),
    "header only": (noise_jpeg()[:20], "."),
    "corrupt PNG": (encoded(flat("RGB", COLOUR), "PNG").replace(b"IDAT", b"IDAT\xff\xff\xff"), "Error"),
    "decompression bomb": (bomb(), "DecompressionBombError"),
    "float": (encoded(flat("F", 0.5), "TIFF"), "no known range"),
    "32-bit": (encoded(flat("I", 1 << 20), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    data, reason = REFUSED[kind]
    path = tmp_path / "odd file.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageReadError, match=reason) as info:
        read_image(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="cannot be opened"):
        read_image(tmp_path / "none.png")
