"""What the reports know about the numbers in test_results.json: titles, units, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Direction = Literal["higher", "lower", "none"]
DIRECTIONS: tuple[str, ...] = get_args(Direction)


@dataclass(frozen=True)
class Metric:
    """One column of test_results.json and how to show it.

    Args:
        key: its name there, such as "test/psnr".
        title: its name in tables and plots.
        better: whether higher or lower values are better; "none" for a reference that no run is to beat.
        scale: factor on the value for showing it.
        decimals: digits after the point.
        unit: what follows the number.
    """

    key: str
    title: str
    better: Direction = "none"
    scale: float = 1.0
    decimals: int = 4
    unit: str = ""

    def show(self, value: float, spread: float | None = None) -> str:
        """The value with its unit; with a spread as "value ± spread"."""
        text = f"{value * self.scale:.{self.decimals}f}"
        if spread is not None:
            text += f" ± {spread * self.scale:.{self.decimals}f}"
        return text + self.unit

    def ahead(self, left: float, right: float) -> bool:
        """Whether `left` is better than `right`."""
        return left > right if self.better == "higher" else left < right


# The columns of `uniflow report`.
KNOWN = {
    metric.key: metric
    for metric in (
        Metric("test/probe_teacher", "probe of the teacher", "none", 100, 1, "%"),
        Metric("test/probe_student", "probe of the student", "higher", 100, 1, "%"),
        Metric("test/cosine", "cosine, mean of layers", "higher"),
        Metric("test/psnr", "PSNR, 1 step", "higher", decimals=2, unit=" dB"),
        Metric("test/ssim", "SSIM, 1 step", "higher"),
        Metric("test/psnr_steps4", "PSNR, 4 steps", "higher", decimals=2, unit=" dB"),
        Metric("test/ssim_steps4", "SSIM, 4 steps", "higher"),
        Metric("test/psnr_patch_mean", "PSNR of patch means", "none", decimals=2, unit=" dB"),
    )
}
# What they are, for somebody who meets them for the first time.
MEANINGS = {
    "test/probe_teacher": "images whose class a linear classifier names, from the encoder's features before training",
    "test/probe_student": "the same from its features after training: what it still understands",
    "test/cosine": "how alike those two are; 1 is the same",
    "test/psnr": "how near reconstructions come to the images, by their squared error; in one step of the decoder",
    "test/ssim": "the same by structure and contrast; 1 is equal",
    "test/psnr_patch_mean": "what each patch in its mean colour reaches, for comparison",
}
# Shown by ablations that name them.
FURTHER = {
    metric.key: metric
    for metric in (
        Metric("test/probe_latent", "probe of the latents", "higher", 100, 1, "%"),
        Metric("test/knn_teacher", "k-NN of the teacher", "none", 100, 1, "%"),
        Metric("test/knn_student", "k-NN of the student", "higher", 100, 1, "%"),
        Metric("test/knn_latent", "k-NN of the latents", "higher", 100, 1, "%"),
        Metric("test/gap_probe", "probe, points below the teacher", "lower", decimals=1),
        Metric("test/gap_knn", "k-NN, points below the teacher", "lower", decimals=1),
        Metric("test/cka", "CKA, mean of layers", "higher"),
    )
}
# The columns of an ablation that names none.
DEFAULT = ("test/probe_student", "test/probe_teacher", "test/cosine", "test/psnr", "test/ssim")
UNDERSTANDING, RECONSTRUCTION = "test/probe_student", "test/psnr"


def named_metric(key: str, better: Direction | None = None) -> Metric:
    """The metric called `key`, known or not; `better` replaces its direction."""
    metric = KNOWN.get(key) or FURTHER.get(key) or Metric(key, key.removeprefix("test/").replace("_", " "))
    return metric if better is None else replace(metric, better=better)


def duration(seconds: float | None) -> str:
    """Seconds as "1 h 02 min", "3 min 07 s" or "12 s"; nothing for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
