"""How close a reconstruction is to its original: one number an image, in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB.

    Args:
        reconstruction: (B, 3, H, W) in [0, 1].
        original: the same shape and range.

    Returns:
        (B,), 10 log10(1 / MSE), at most 100 dB: two equal images have no finite value, and one of them in a million
        must not make the mean infinite.
    """
    values = peak_signal_noise_ratio(
        reconstruction.float(), original.float(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp_max(100.0)


def ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5).

    Args:
        reconstruction: (B, 3, H, W) in [0, 1]; both sides at least 11 pixels.
        original: the same shape and range.

    Returns:
        (B,), at most 1. The data range is 1; several public tokenizers used 2 and report .03 to .14 too much.
    """
    values = structural_similarity_index_measure(
        reconstruction.float(), original.float(), data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)  # a tuple only when full images are asked for
    return values


def patch_means(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, H, W) with every patch painted in its mean colour; H and W are multiples of `patch_size`."""
    return F.interpolate(F.avg_pool2d(images, patch_size), scale_factor=patch_size, mode="nearest")
