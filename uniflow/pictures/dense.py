"""Maps as pictures: masks over their image, and depth in colours."""

from __future__ import annotations

import colorsys

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.pictures.drawing import heat_map

_TURN = 0.618034  # of the colour circle, from one class to the next: neighbours in number differ in hue


def class_colors(count: int) -> Tensor:
    """One colour for each of `count` classes, (count, 3) in [0, 1]; class 0 is dark grey, as a background."""
    hues = ((number * _TURN) % 1 for number in range(count))
    colors = [colorsys.hsv_to_rgb(hue, (1.0, 0.65)[number % 2], 1.0 - 0.08 * (number % 4))
              for number, hue in enumerate(hues)]  # fmt: skip
    return torch.tensor([(0.15, 0.15, 0.15), *colors[1:]])


def overlay(images: Tensor, labels: Tensor, num_classes: int, opacity: float = 0.65) -> Tensor:
    """Class colours over the grey image.

    Args:
        images: (B, 3, H, W) in [0, 1].
        labels: (B, h, w) integers; of another size they are brought to that of the images. Pixels whose label is not in
            0 to `num_classes` - 1 show the image.
        num_classes: number of classes.
        opacity: of the colours.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    labels = resize_nearest(labels, (images.shape[-2], images.shape[-1])).long()
    known = (labels >= 0) & (labels < num_classes)
    colors = class_colors(num_classes).to(images.device)[labels.where(known, 0)].movedim(-1, 1)
    grey = images.float().mean(dim=1, keepdim=True).expand_as(images)
    return torch.where(known.unsqueeze(1), (1 - opacity) * grey + opacity * colors, images.float())


def depth_picture(depth: Tensor, nearest: float, farthest: float, size: tuple[int, int]) -> Tensor:
    """Depth maps (B, h, w) as colours (B, 3, *size) in [0, 1]: near is white, far is dark red, without depth black.

    Colours go by the logarithm of the depth from `nearest` to `farthest`, both positive.
    """
    depth = resize_nearest(depth.float(), size)
    low, high = torch.tensor([nearest, farthest]).log().tolist()
    share = (depth.clamp_min(1e-6).log() - low) / max(high - low, 1e-6)
    return heat_map((1 - 0.85 * share.clamp(0, 1)) * (depth > 0))


def resize_nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) of any type at another size, (B, *size), each pixel from the one at its centre."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps.unsqueeze(1).double(), size=size, mode="nearest-exact").squeeze(1).to(maps.dtype)
