"""The one evaluation protocol, used during fit and afterwards."""

from uniflow.metrics.averages import Averages
from uniflow.metrics.probe import linear_probe
from uniflow.metrics.reconstruction import patch_means, psnr, ssim

__all__ = ["Averages", "linear_probe", "patch_means", "psnr", "ssim"]
