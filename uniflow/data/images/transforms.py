"""Crops and flips of uint8 images, with randomness from an explicit generator."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from uniflow.core.numbers import check_ranges
from uniflow.data.images.reading import MAX_PIXELS, ImageReadError, read_image

THIN = 64  # an image more than this many times as long as wide is a strip, which is not enlarged
MOST_SIDE = 2**14  # pixels of a crop
MOST_ENLARGED = 2**26  # pixels that a small image is enlarged to


class Rectangle(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """The view (..., height, width) of an image (..., H, W)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


class CropPlan(NamedTuple):
    """What a crop does to an image, so that the same can be done to what belongs to it (see `uniflow.data.joint`).

    Attributes:
        cut: the part of the image that is resized.
        resized: height and width that it is resized to.
        kept: the part of the resized image that is kept.
        flipped: whether that is flipped horizontally.
    """

    cut: Rectangle
    resized: tuple[int, int]
    kept: Rectangle
    flipped: bool = False

    def min_side(self, height: int, width: int) -> int:
        """Pixels that both sides of the image, of this height and width, have to keep, so that nothing is enlarged."""
        shrunk = min(self.cut.height / self.resized[0], self.cut.width / self.resized[1])
        return math.ceil(min(height, width) / max(1.0, shrunk))

    def scaled(self, down: float, across: float) -> CropPlan:
        """The same for the image resized by these factors, to whole pixels."""
        top, bottom = (round(y * down) for y in (self.cut.top, self.cut.top + self.cut.height))
        left, right = (round(x * across) for x in (self.cut.left, self.cut.left + self.cut.width))
        return self._replace(cut=Rectangle(top, left, max(1, bottom - top), max(1, right - left)))

    def image(self, image: Tensor) -> Tensor:
        """Crop an image (..., H, W) to (..., kept.height, kept.width), resized with antialiasing."""
        image = self.kept.cut(_resize(self.cut.cut(image), *self.resized))
        return (image.flip(-1) if self.flipped else image).contiguous()


class RandomResizedCrop:
    """The training crop: a rectangle of random area and aspect ratio, resized and flipped at random."""

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        """
        Args:
            size: side of the result in pixels; the largest side if calls ask for several sizes.
            scale: smallest and largest share of the image's area, in (0, 1].
            ratio: smallest and largest width / height of the rectangle, relative to that of the result, drawn
                uniformly in the logarithm: how far the image is squeezed.
            flip: probability of a horizontal flip, in [0, 1].

        Raises:
            ValueError: if a setting is out of range.
        """
        if size < 1:
            raise ValueError(f"the crop's size must be at least 1 pixel, not {size}")
        check_ranges("the crop", {"size": (size, 1, MOST_SIDE)})
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"the crop's scale must satisfy 0 < low <= high <= 1, not {tuple(scale)}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"the crop's ratio must satisfy 0 < low <= high, not {tuple(ratio)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"the flip probability must be in [0, 1], not {flip}")
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def __call__(self, image: Tensor, generator: torch.Generator, size: tuple[int, int] | None = None) -> Tensor:
        """Crop uint8 (3, H, W) to uint8 (3, *size), a height and a width; without it to (3, self.size, self.size)."""
        return self.draw(image.shape[-2], image.shape[-1], generator, size).image(image)

    def read(
        self,
        source: str | bytes,
        name: str,
        generator: torch.Generator,
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:
        """Draw a crop of an image file, which is decoded at no more than the size that this crop needs.

        Args:
            source: a path, or the bytes of a file.
            name: of the image in errors.
            generator: of the crop.
            size: as in `__call__`.
            max_pixels: as in `read_image`.

        Returns:
            uint8 (3, *size), as `__call__` gives.

        Raises:
            ImageReadError: if the file cannot be read.
        """
        drawn: list[tuple[int, int, CropPlan]] = []

        def least(height: int, width: int) -> int:
            plan = self.draw(height, width, generator, size)
            drawn.append((height, width, plan))
            return plan.min_side(height, width)

        image = read_image(source, name, least, max_pixels)
        [(height, width, plan)] = drawn
        return plan.scaled(image.shape[-2] / height, image.shape[-1] / width).image(image)

    def draw(
        self, height: int, width: int, generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> CropPlan:
        """Draw a crop of an image of this height and width; `size` as in `__call__`."""
        to_height, to_width = size or (self.size, self.size)
        cut = self._box(height, width, generator, to_width / to_height)
        flipped = torch.rand((), generator=generator).item() < self.flip
        return CropPlan(cut, (to_height, to_width), Rectangle(0, 0, to_height, to_width), flipped)

    def _box(self, height: int, width: int, generator: torch.Generator, aspect: float = 1.0) -> Rectangle:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            share, log_ratio, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + log_ratio * (high - low)) * aspect
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Rectangle(int(y * (height - h + 1)), int(x * (width - w + 1)), h, w)
        # No rectangle fits a very long or tiny image: take the largest central one of an allowed ratio.
        w = max(1, min(width, round(height * self.ratio[1] * aspect)))
        h = max(1, min(height, round(width / (self.ratio[0] * aspect))))
        return Rectangle((height - h) // 2, (width - w) // 2, h, w)


class CenterCrop:
    """The evaluation crop: the short side resized to `size / crop`, and the central square of it."""

    def __init__(self, size: int, crop: float = 1.0) -> None:
        """
        Args:
            size: side of the result in pixels.
            crop: share of the resized short side that is kept, in (0, 1].

        Raises:
            ValueError: if a setting is out of range.
        """
        if size < 1:
            raise ValueError(f"the crop's size must be at least 1 pixel, not {size}")
        check_ranges("the crop", {"size": (size, 1, MOST_SIDE)})
        if not 0 < crop <= 1:
            raise ValueError(f"the centre crop's share must be in (0, 1], not {crop}")
        self.size, self.crop = size, crop

    def __call__(self, image: Tensor) -> Tensor:
        """Crop uint8 (3, H, W) to uint8 (3, size, size)."""
        return self.plan(image.shape[-2], image.shape[-1]).image(image)

    def plan(self, height: int, width: int) -> CropPlan:
        """The crop of an image of this height and width."""
        short = min(height, width)
        # Only the middle of a long strip is needed, and resizing all of it could take gigabytes.
        middle = _central(height, width, min(height, 4 * short), min(width, 4 * short))
        resized = _short_side_size(middle.height, middle.width, max(self.size, round(self.size / self.crop)))
        return CropPlan(middle, resized, _central(*resized, self.size, self.size))


def resize_short_side(image: Tensor, side: int, name: str = "the image") -> Tensor:
    """Resize (..., H, W) with antialiasing, so that the short side has `side` pixels and the aspect ratio stays.

    Args:
        image: to be resized.
        side: of the result in pixels.
        name: of the image in errors.

    Raises:
        ImageReadError: if a thin strip, or an image beyond `MOST_ENLARGED` pixels, would come of enlarging it.
    """
    height, width = image.shape[-2:]
    new = _short_side_size(height, width, side)
    if side > min(height, width) and (max(new) > THIN * side or new[0] * new[1] > MOST_ENLARGED):
        what = f"{width} x {height} pixels would be enlarged to {new[1]} x {new[0]}"
        raise ImageReadError(name, f"{what}; take a smaller size, or crop it first")
    return _resize(image, *new)


def _short_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    factor = side / min(height, width)
    return max(side, round(height * factor)), max(side, round(width * factor))


def _central(height: int, width: int, to_height: int, to_width: int) -> Rectangle:
    return Rectangle(round((height - to_height) / 2), round((width - to_width) / 2), to_height, to_width)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    if image.dtype == torch.uint8 and image.ndim == 3 and image.is_cpu:  # what torchvision's comes down to
        return interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    return functional.resize(image, [height, width], functional.InterpolationMode.BICUBIC, antialias=True)
