"""The one evaluation protocol, used during fit and afterwards."""

from uniflow.metrics.probe import linear_probe
from uniflow.metrics.reconstruction import psnr, ssim

__all__ = ["linear_probe", "psnr", "ssim"]
