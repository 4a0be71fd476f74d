"""Pixels: uint8 from 0 to 255 and floats in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images as floats of type `dtype` in [0, 1]; floats are returned unchanged."""
    return images if images.is_floating_point() else images.to(dtype) / 255


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, clamped and rounded; uint8 is returned unchanged. nan becomes 0."""
    return (images.float().nan_to_num().clamp(0, 1) * 255).round().byte() if images.is_floating_point() else images
