"""Crops and flips on uint8 images, with randomness from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    if image.dtype == torch.uint8 and image.ndim == 3 and image.is_cpu:  # what torchvision's comes to
        return interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    return functional.resize(image, [height, width], functional.InterpolationMode.BICUBIC, antialias=True)


class RandomResizedCrop:
    """The training crop: a rectangle of random area and aspect ratio, resized and mirrored at random."""

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        """
        Args:
            size: side of the result in pixels, the largest one where calls ask for several.
            scale: least and largest share of the image's area, in (0, 1].
            ratio: least and largest width / height of the rectangle, relative to that of the result, drawn evenly in
                the logarithm: how far the picture is squeezed.
            flip: probability of a horizontal mirror image, in [0, 1].

        Raises:
            ValueError: if a setting is out of range.
        """
        if size < 1:
            raise ValueError(f"the crop's size must be at least 1 pixel, not {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"the crop's scale must satisfy 0 < low <= high <= 1, not {tuple(scale)}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"the crop's ratio must satisfy 0 < low <= high, not {tuple(ratio)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"the flip probability must be in [0, 1], not {flip}")
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    @property
    def min_side(self) -> int:
        """Pixels that both sides of an image should keep, so that the smallest crop is not enlarged."""
        return math.ceil(self.size / math.sqrt(self.scale[0]))

    def __call__(self, image: Tensor, generator: torch.Generator, size: tuple[int, int] | None = None) -> Tensor:
        """Crop uint8 (3, H, W) to uint8 (3, *size), a height and a width; (3, self.size, self.size) without them."""
        to_height, to_width = size or (self.size, self.size)
        top, left, height, width = self._box(image.shape[-2], image.shape[-1], generator, to_width / to_height)
        image = _resize(image[:, top : top + height, left : left + width], to_height, to_width)
        mirrored = torch.rand((), generator=generator).item() < self.flip
        return (image.flip(-1) if mirrored else image).contiguous()

    def _box(
        self, height: int, width: int, generator: torch.Generator, aspect: float = 1.0
    ) -> tuple[int, int, int, int]:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            share, log_ratio, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + log_ratio * (high - low)) * aspect
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        # No rectangle fits a very long or tiny image: take the largest central one of an allowed ratio.
        w = max(1, min(width, round(height * self.ratio[1] * aspect)))
        h = max(1, min(height, round(width / (self.ratio[0] * aspect))))
        return (height - h) // 2, (width - w) // 2, h, w


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
        if not 0 < crop <= 1:
            raise ValueError(f"the centre crop's share must be in (0, 1], not {crop}")
        self.size, self.crop = size, crop

    def __call__(self, image: Tensor) -> Tensor:
        """Crop uint8 (3, H, W) to uint8 (3, size, size)."""
        short = min(image.shape[-2:])
        # Of a long strip nothing but its middle is needed, and resizing all of it could take gigabytes.
        image = functional.center_crop(image, [min(side, 4 * short) for side in image.shape[-2:]])
        image = resize_short_side(image, max(self.size, round(self.size / self.crop)))
        return functional.center_crop(image, [self.size, self.size]).contiguous()


def resize_short_side(image: Tensor, side: int) -> Tensor:
    """Resize (..., H, W) with antialiasing, so that the short side has `side` pixels and the aspect ratio stays."""
    height, width = image.shape[-2:]
    factor = side / min(height, width)
    return _resize(image, max(side, round(height * factor)), max(side, round(width * factor)))
