"""The one evaluation protocol, used during fit and afterwards."""

from uniflow.metrics.probe import linear_probe
from uniflow.metrics.reconstruction import patch_means, psnr, ssim

__all__ = ["linear_probe", "patch_means", "psnr", "ssim"]
