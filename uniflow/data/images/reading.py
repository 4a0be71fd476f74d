"""Image files of all common kinds to uint8 RGB, or one clear error."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, features
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.core.files import open_regular, printable, read_bytes

try:
    import simplejpeg
except ImportError:  # in the extra `fast`; without it PIL decodes to the same pixels, but slower
    simplejpeg = None

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# Not all formats of PIL: some, such as EPS, start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SIXTEEN_BIT_GREY = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 2 * 89_478_485  # PIL's own limit; an image of this size takes half a gigabyte
MAX_BYTES = 2**29

# Two decoders built on libjpeg-turbo give identical pixels; with another library they may differ.
FAST_JPEG = simplejpeg is not None and bool(features.check_feature("libjpeg_turbo"))


class ImageReadError(ValueError):
    """A file that cannot be read as an image; the message is "NAME: REASON" in one line."""

    def __init__(self, name: str, reason: str) -> None:
        name = printable(name)
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        # An exception from a worker process is rebuilt from `args`, which hold only the message.
        return type(self), (self.name, self.reason)


def read_image(
    source: str | os.PathLike[str] | bytes,
    name: str | None = None,
    min_side: int | Callable[[int, int], int] | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """Read an image file as uint8 RGB.

    The EXIF orientation is applied. Grey, 1-bit, palette, CMYK, YCbCr and Lab images are converted, 16-bit channels
    keep their high byte, transparency is composited on white, and the first of several frames is used.

    Plain JPEG files are decoded by simplejpeg if it is installed, to exactly PIL's pixels. PIL reads every header, all
    other files, and those that simplejpeg refuses.

    Args:
        source: a path, or the bytes of a file.
        name: name of the file in errors; the path by default.
        min_side: allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep this many
            pixels, or as many as a function of its height and width gives, which is called for every format. This is
            faster, and close to a box filter; meant for training.
        max_pixels: most pixels of an image, as its header says; at most `MAX_PIXELS`.
        max_bytes: largest size of a file; larger ones are not read.

    Returns:
        The image, uint8 (3, H, W) in [0, 255].

    Raises:
        ImageReadError: if the file is missing, not a regular file, empty, not an image, truncated or corrupt, too
            large, or has a number format without a known range.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name = name or os.fspath(source)
        data = _read(source, name, max_bytes)
    if not data:
        raise ImageReadError(name, "the file is empty")
    try:
        with open_image(io.BytesIO(data), name, max_pixels) as image:
            if min_side is not None:
                least = min_side(*_upright_size(image)) if callable(min_side) else min_side
                image.draft(None, (least, least))
            pixels = _plain_jpeg(image, data)
            if pixels is None:
                ImageOps.exif_transpose(image, in_place=True)
                pixels = np.array(_to_rgb(image, name))
    except (ImageReadError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageReadError(name, f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # broken files make PIL's decoders raise almost anything
        raise ImageReadError(name, f"{type(error).__name__}: {one_line(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def image_size(source: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of an image file as `read_image` returns it, from the file's header.

    Raises:
        ImageReadError: if the file cannot be opened, is not an image or has more than `max_pixels` pixels; the pixels
            are not checked.
    """
    name = os.fspath(source)
    try:
        with open_regular(source) as file, open_image(file, name, max_pixels) as image:
            return _upright_size(image)
    except ImageReadError:
        raise
    except Exception as error:  # as in `read_image`
        raise ImageReadError(name, f"{type(error).__name__}: {one_line(error)}") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an open image when its EXIF orientation has been applied."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # some versions of PIL turn its size already
        width, height = int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _read(source: str | os.PathLike[str], name: str, max_bytes: int) -> bytes:
    try:
        return read_bytes(source, max_bytes)
    except OSError as error:
        raise ImageReadError(name, f"cannot be opened ({error.strerror or error})") from error


@contextmanager
def open_image(file: BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The image of an open file, whose pixels are not yet read.

    Raises:
        ImageReadError: if it has more than `max_pixels` pixels; PIL raises other errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
        image = Image.open(file, formats=FORMATS)
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageReadError(name, f"{width} x {height} pixels, more than {max_pixels:,} in all (max_pixels)")
        yield image


def _plain_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels (H, W, 3) of an upright grey or YCbCr JPEG; None for files that PIL has to decode or refuse."""
    if not FAST_JPEG or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if image.getexif().get(ORIENTATION, 1) != 1:
        return None
    width, height = image.size  # after `draft`
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # at least slightly broken: PIL decides
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in SIXTEEN_BIT_GREY:
        return _grey(np.asarray(image).astype(np.uint16), image.info.get("transparency"))
    if image.mode == "I":  # 32-bit integers: a 16-bit file in some formats, otherwise without a known range
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(name, "32-bit integer pixels have no known range; save it as 8- or 16-bit")
        return _grey(values.astype(np.uint16), image.info.get("transparency"))
    if image.mode == "F":
        raise ImageReadError(name, "floating-point pixels have no known range; save it as 8- or 16-bit")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy it


def _grey(values: np.ndarray, transparent: int | None) -> Image.Image:
    """A 16-bit grey image as RGB; the value `transparent` becomes white."""
    grey = (values >> 8).astype(np.uint8)
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
