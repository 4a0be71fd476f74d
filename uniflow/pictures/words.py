"""Words on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

STRIP, FONT, NARROWEST = 14, 10, 96  # height of the strip under an image, size of its letters, narrowest image


def with_words(images: Tensor, words: Sequence[str], colors: Sequence[str] | None = None) -> Tensor:
    """Images with a line of words in a strip under each.

    Args:
        images: (n, 3, H, W) in [0, 1]; narrow ones are enlarged by a whole factor, so that words have room.
        words: one line for each image; what does not fit is cut.
        colors: of each strip, as PIL names them; black by default.

    Returns:
        (n, 3, H', W') in [0, 1], on the images' device.
    """
    factor = -(-NARROWEST // images.shape[-1])
    if factor > 1:
        images = F.interpolate(images, scale_factor=factor, mode="nearest")
    font = ImageFont.load_default(FONT)
    strips = []
    for line, color in zip(words, colors or ["black"] * len(words), strict=True):
        strip = Image.new("RGB", (images.shape[-1], STRIP), color)
        ImageDraw.Draw(strip).text((3, 1), line, fill="white", font=font)
        strips.append(pil_to_tensor(strip))
    return torch.cat([images, torch.stack(strips).to(images) / 255], dim=-2)
