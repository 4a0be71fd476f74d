"""Images with boxes brought to one size: resized without distortion, cut and padded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.data.images.transforms import CropPlan, Rectangle
from uniflow.data.joint import JointCrop

GREY = 118  # of the padding, about the mean of photographs
BOX_FIELDS = ("box_labels", "box_crowd", "box_area", "box_visibility", "box_number")


class JointFit(JointCrop):
    """Resizes an image as a whole, with its boxes and masks, and fits it to a square.

    The short side becomes `short_side`, or less if the long side would not fit. The result is padded at the right and
    at the bottom. In training the size is multiplied by a random factor first, and a random part is kept of an image
    that has become too large (arXiv 2012.07177 calls this large-scale jitter).

    Args:
        size: side of the result in pixels.
        short_side: of the resized image; None: as large as fits.
        jitter: smallest and largest random factor in training.
        flip: probability of a horizontal flip in training.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        size: int,
        short_side: int | None = None,
        jitter: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.5,
    ) -> None:
        super().__init__(BOX_FIELDS)
        if size < 1 or not (short_side is None or 1 <= short_side <= size):
            raise ValueError(f"size must be at least 1, and short_side in 1 ... size, not {size} and {short_side}")
        if not 0 < jitter[0] <= jitter[1]:
            raise ValueError(f"jitter must satisfy 0 < low <= high, not {tuple(jitter)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"the flip probability must be in [0, 1], not {flip}")
        self.size, self.short_side, self.jitter, self.flip = size, short_side or size, tuple(jitter), flip

    def __call__(self, sample: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Fit a sample: "image" uint8 (3, H, W), and any of the fields named in `JointCrop`.

        Args:
            sample: the fields.
            generator: the randomness of training; None: no jitter and no flip.

        Returns:
            The fields, and "image_scale", pixels of the result for each pixel of the image.
        """
        height, width = sample["image"].shape[-2:]
        plan = self._plan(height, width, generator)
        fitted = self._apply(sample, plan)
        kept = (plan.kept.height, plan.kept.width)
        padding = (0, self.size - kept[1], 0, self.size - kept[0])
        for name, value in fitted.items():
            if isinstance(value, Tensor) and value.shape[-2:] == kept and name != "boxes":
                fitted[name] = F.pad(value, padding, value=GREY if name == "image" else 0)
        return fitted | {"image_scale": (plan.resized[0] * plan.resized[1] / (height * width)) ** 0.5}

    def _plan(self, height: int, width: int, generator: torch.Generator | None) -> CropPlan:
        factor = min(self.short_side / min(height, width), self.size / max(height, width))
        low, high = self.jitter
        share, y, x, flip = (0.0, 0.0, 0.0, 1.0)
        if generator is not None:
            share, y, x, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            factor *= low + share * (high - low)
        resized = max(1, round(height * factor)), max(1, round(width * factor))
        kept = min(resized[0], self.size), min(resized[1], self.size)
        top, left = round(y * (resized[0] - kept[0])), round(x * (resized[1] - kept[1]))
        return CropPlan(Rectangle(0, 0, height, width), resized, Rectangle(top, left, *kept), flip < self.flip)
