"""Image files to uint8 RGB: whatever photographs come as, or one clear error."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# Not all that PIL opens: some formats, as EPS, start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SIXTEEN_BIT_GREY = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


class ImageReadError(ValueError):
    """A file that cannot be read as an image; the message is "NAME: REASON" in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        # Exceptions are rebuilt from `args` when a worker process hands them over, and those hold one text.
        return type(self), (self.name, self.reason)


def read_image(source: str | os.PathLike[str] | bytes, name: str | None = None, min_side: int | None = None) -> Tensor:
    """Read an image file as uint8 RGB.

    The EXIF orientation is applied. Grey, 1-bit, palette, CMYK, YCbCr and Lab images are converted, 16-bit channels
    keep their high byte, transparency is composited on white, and of several frames the first is taken.

    Args:
        source: a path, or the bytes of a file.
        name: what an error calls the file; the path by default.
        min_side: allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep this many
            pixels. Faster, and close to a box filter; meant for training.

    Returns:
        The image, uint8 (3, H, W) in [0, 255].

    Raises:
        ImageReadError: if the file is missing, empty, no image, truncated or corrupt, has more pixels than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, or a number format without a known range.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name = name or os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ImageReadError(name, f"cannot be opened ({error.strerror or error})") from error
    if not data:
        raise ImageReadError(name, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image), name))
    except (ImageReadError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageReadError(name, f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # broken files make PIL's decoders raise nearly anything
        raise ImageReadError(name, _one_line(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in SIXTEEN_BIT_GREY:
        return _grey(np.asarray(image).astype(np.uint16))
    if image.mode == "I":  # 32-bit integers: a 16-bit file in some formats, else of no known range
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(name, "32-bit integer pixels have no known range; save it as 8- or 16-bit")
        return _grey(values.astype(np.uint16))
    if image.mode == "F":
        raise ImageReadError(name, "floating-point pixels have no known range; save it as 8- or 16-bit")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
