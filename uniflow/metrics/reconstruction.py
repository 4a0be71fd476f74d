"""How close a reconstruction is to its original: one number an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from uniflow.layers.precision import without_autocast


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

    Equals scikit-image's with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: windows that reach over
    the border do not count.

    Args:
        reconstruction: (B, 3, H, W) in [0, 1]; both sides at least 11 pixels.
        original: the same shape and range.

    Returns:
        (B,), at most 1. The data range is 1; several public tokenizers used 2 and report .03 to .14 too much.

    Raises:
        ValueError: for smaller images.
    """
    return _ssim(reconstruction, original, data_range=1.0)


def legacy_ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """`ssim` computed as if [0, 1] images had a range of 2: too high, for comparison with tables made that way."""
    return _ssim(reconstruction, original, data_range=2.0)


def _ssim(reconstruction: Tensor, original: Tensor, data_range: float) -> Tensor:
    if min(original.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {tuple(original.shape[-2:])}")
    with without_autocast(original.device):  # which would blur in bfloat16
        _, full = structural_similarity_index_measure(
            reconstruction.float(), original.float(), data_range=data_range, reduction="none", return_full_image=True
        )
    return full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))


def ms_ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image (Wang et al. 2003: five scales, Gaussian window of 11 pixels).

    Args:
        reconstruction: (B, 3, H, W) in [0, 1]; both sides above 160 pixels, so that the coarsest scale has a window.
        original: the same shape and range.

    Returns:
        (B,), at most 1.

    Raises:
        ValueError: for smaller images.
    """
    if min(original.shape[-2:]) <= 160:
        raise ValueError(f"ms_ssim needs images with sides above 160 pixels, got {tuple(original.shape[-2:])}")
    with without_autocast(original.device):
        return multiscale_structural_similarity_index_measure(
            reconstruction.float(), original.float(), data_range=1.0, reduction="none", normalize="relu"
        )


def patch_means(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, H, W) with every patch filled with its mean colour; H and W are multiples of `patch_size`."""
    return F.interpolate(F.avg_pool2d(images, patch_size), scale_factor=patch_size, mode="nearest")
