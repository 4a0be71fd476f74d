"""How close a reconstructed clip is to its original, also in what changes from frame to frame."""

from __future__ import annotations

import torch
from torch import Tensor

from uniflow.core.numbers import CheckedNumbers, NonNegativeFloat
from uniflow.metrics.reconstruction import psnr, ssim

STATIC = 2.0  # grey levels of 255: compression changes a pixel of a film by that much where nothing moves


def difference_psnr(reconstruction: Tensor, original: Tensor) -> Tensor:
    """PSNR of the differences of neighbouring frames, in dB: how well changes over time are kept.

    Args:
        reconstruction: (T, 3, H, W) in [0, 1], T >= 2.
        original: the same shape and range.

    Returns:
        (T - 1,), 10 log10(1 / MSE(r_t - r_{t-1}, o_t - o_{t-1})), at most 100 dB; the range is that of images, 1. An
        error that is the same in both frames does not count.
    """
    return psnr(reconstruction.float().diff(dim=0), original.float().diff(dim=0))


def flicker(reconstruction: Tensor, original: Tensor, threshold: NonNegativeFloat = STATIC) -> tuple[Tensor, Tensor]:
    """How much the reconstruction changes where the original does not.

    Args:
        reconstruction: (T, 3, H, W) in [0, 1], T >= 2.
        original: the same shape and range.
        threshold: a pixel is static from one frame to the next if no channel of the original changes by more, in grey
            levels of 255.

    Returns:
        For each pair of neighbouring frames, (T - 1,): the mean absolute change of the reconstruction over static
        pixels and channels, in grey levels of 255, nan where no pixel is static; and the share of static pixels.
    """
    still = _static(original, threshold)
    change = reconstruction.float().diff(dim=0).abs().mean(dim=1) * 255
    share = still.float().mean(dim=(1, 2))
    return (change * still).mean(dim=(1, 2)) / share, share


def _static(original: Tensor, threshold: float) -> Tensor:
    """Which pixels do not change from one frame to the next, bool (T - 1, H, W)."""
    # A thousandth of a level for rounding: frames are multiples of 1 / 255.
    return original.float().diff(dim=0).abs().amax(dim=1) * 255 <= threshold + 1e-3


class ClipScores(CheckedNumbers):
    """The scores of one clip, fed piece by piece in bounded memory: only the last frame is kept.

    The numbers do not depend on how the clip is cut into pieces, but for the order of sums in float64.

    Args:
        threshold: as for `flicker`.
    """

    def __init__(self, threshold: NonNegativeFloat = STATIC) -> None:
        self.threshold = threshold
        self.frames = 0
        self._sums: dict[str, float] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def update(self, reconstruction: Tensor, original: Tensor) -> None:
        """Further frames: (T, 3, H, W) in [0, 1], both; T >= 1, all of one clip of one size."""
        self.frames += len(original)
        self._add("psnr", psnr(reconstruction, original))
        if min(original.shape[-2:]) >= 11:  # SSIM's window
            self._add("ssim", ssim(reconstruction, original))
        if self._last is not None:
            reconstruction = torch.cat([self._last[0], reconstruction])
            original = torch.cat([self._last[1], original])
        self._last = reconstruction[-1:].clone(), original[-1:].clone()
        if len(original) < 2:
            return
        self._add("difference_psnr", difference_psnr(reconstruction, original))
        change, share = flicker(reconstruction, original, self.threshold)
        own, _ = flicker(original, original, self.threshold)
        self._add("static", share)
        self._add("flicker", (change * share).nan_to_num())
        self._add("flicker_original", (own * share).nan_to_num())

    def compute(self) -> dict[str, float]:
        """The clip's numbers; those that need more frames, larger ones or static pixels are nan without.

        Returns:
            "frames"; "psnr" and "ssim", means over frames; "difference_psnr", the mean over pairs of neighbours;
            "flicker", of the reconstruction, and "flicker_original", its floor, in grey levels of 255, means over all
            static pixels of all pairs; "static", the share of static pixels.
        """
        pairs, static = self.frames - 1, self._sums.get("static", 0.0)
        counts = {"psnr": self.frames, "ssim": self.frames, "difference_psnr": pairs}
        counts |= {"flicker": static, "flicker_original": static, "static": pairs}  # type: ignore[dict-item]
        means = {
            name: self._sums[name] / count if name in self._sums and count else float("nan")
            for name, count in counts.items()
        }
        return {"frames": self.frames, **means}

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())


def describe(scores: dict[str, float]) -> str:
    """The numbers of `ClipScores.compute` in one line."""
    return (
        f"{scores['frames']} frames, PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f}, "
        f"PSNR of differences {scores['difference_psnr']:.2f} dB, flicker {scores['flicker']:.3f} of 255 "
        f"on {scores['static']:.0%} static pixels (original {scores['flicker_original']:.3f})"
    )
