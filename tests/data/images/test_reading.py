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

from uniflow.data.images import reading
from uniflow.data.images.reading import ImageReadError, image_size, read_image

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
    "16-bit grey with a transparent value": (
        encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0x1234, np.uint16)), "PNG", transparency=0x1234),
        (255, 255, 255),
    ),
    "16-bit grey with another transparent value": (
        encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0x4000, np.uint16)), "PNG", transparency=0x4001),
        (64, 64, 64),
    ),
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


def smooth(height: int, width: int) -> Image.Image:
    """A picture with edges and slopes in all three channels."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([120 + 100 * np.sin(x / 7), 255 * ((x + y) % 40 > 20), y * 255 / height], -1)
    return Image.fromarray(pixels.astype(np.uint8))


JPEGS = {
    **{f"4:{s}": {"subsampling": i} for i, s in enumerate(("4:4", "2:2", "2:0"))},
    "coarse": {"quality": 10},
    "fine": {"quality": 100},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "RGB without a conversion": {"keep_rgb": True},
    "turned": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", JPEGS)
def test_both_decoders_give_the_same_pixels(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "CMYK" and kind == "RGB without a conversion":
        pytest.skip("keep_rgb is for RGB")
    assert reading.FAST_JPEG, "pip install 'uniflow[fast]'"
    for height, width in ((75, 100), (61, 43), (1, 9)):
        data = encoded(smooth(height, width).convert(mode), "JPEG", **JPEGS[kind])
        for min_side in (None, 40, 16):
            monkeypatch.setattr(reading, "FAST_JPEG", True)
            fast = read_image(data, min_side=min_side)
            monkeypatch.setattr(reading, "FAST_JPEG", False)
            assert torch.equal(fast, read_image(data, min_side=min_side)), (height, width, min_side)


def test_plain_jpegs_take_the_fast_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decode = reading.simplejpeg.decode_jpeg

    def spy(*args: Any, **kwargs: Any) -> np.ndarray:
        calls.append(kwargs)
        return decode(*args, **kwargs)

    monkeypatch.setattr(reading.simplejpeg, "decode_jpeg", spy)
    read_image(encoded(smooth(64, 80), "JPEG"), min_side=32)
    read_image(encoded(smooth(64, 80).convert("L"), "JPEG"))
    assert [call["min_height"] for call in calls] == [32, 64]
    for other in (encoded(smooth(8, 8), "PNG"), encoded(smooth(8, 8).convert("CMYK"), "JPEG")):
        read_image(other)
    assert len(calls) == 2


def test_what_the_fast_decoder_refuses_is_left_to_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(noise_jpeg())
    generator = np.random.default_rng(0)
    refused = read = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[generator.integers(2, len(data))] = generator.integers(256)
        results: list[Any] = []
        for fast in (True, False):
            monkeypatch.setattr(reading, "FAST_JPEG", fast)
            try:
                results.append(read_image(bytes(broken)))
            except ImageReadError as error:
                results.append(str(error))
        refused, read = refused + isinstance(results[0], str), read + isinstance(results[0], torch.Tensor)
        assert str(results[0]) == str(results[1])
        assert isinstance(results[0], str) or torch.equal(results[0], results[1])
    assert refused
    assert read


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF with JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_image_as_it_is_read(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.jpg"
    options: dict[str, Any] = {"exif": exif, **({"compression": "jpeg"} if "with" in kind else {})}
    path.write_bytes(encoded(smooth(12, 20), kind.split(" ", 1)[0], **options))
    assert image_size(path) == ((20, 12) if orientation > 4 else (12, 20))
    assert image_size(path) == tuple(read_image(path).shape[1:])


def test_a_file_without_a_header_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    with pytest.raises(ImageReadError, match=r"image\.jpg"):
        image_size(path)
    path.write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"image\.jpg"):
        image_size(path)


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
    "more pixels than allowed": (
        encoded(Image.new("1", (1001, 1000)), "PNG"),
        "1001 x 1000 pixels, more than 1,000,000",
    ),
    "float": (encoded(flat("F", 0.5), "TIFF"), "no known range"),
    "32-bit": (encoded(flat("I", 1 << 20), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    data, reason = REFUSED[kind]
    path = tmp_path / "odd file.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageReadError, match=reason) as info:
        read_image(path, max_pixels=10**6)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="cannot be opened"):
        read_image(tmp_path / "none.png")
