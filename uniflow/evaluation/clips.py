"""Numbers of reconstructed clips: fed batch by batch, then asked for their means and the distance of the sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from uniflow.core.pixels import to_uint8, to_unit_range
from uniflow.metrics.distribution import frechet_distance, moments
from uniflow.metrics.video import STATIC, ClipScores
from uniflow.metrics.video_features import VideoFeatures

Noise = Literal["shared", "independent"]


class ClipEvaluation:
    """Judges reconstructed clips, in one process.

    Args:
        features: for the Frechet distance between the sets of originals and reconstructions; None computes none.
        noise: what the reconstructions start from, for the fingerprint; see `noise_digests`.
    """

    def __init__(self, features: VideoFeatures | None = None, noise: Noise = "shared") -> None:
        self.features, self.noise = features, noise
        self.rows: list[dict[str, Any]] = []
        self._sets: tuple[list[Tensor], list[Tensor]] = ([], [])

    def update(self, reconstruction: Tensor, original: Tensor, frames: int, names: Sequence[str] | None = None) -> None:
        """Whole clips, clip after clip.

        Args:
            reconstruction: (B T, 3, H, W) in [0, 1].
            original: the same shape, uint8 or float in [0, 1].
            frames: T.
            names: of the frames; a clip is called as its first frame up to " frame".
        """
        clips = (reconstruction.unflatten(0, (-1, frames)), to_unit_range(original).unflatten(0, (-1, frames)))
        for number, pair in enumerate(zip(*clips, strict=True)):
            scores = ClipScores()
            scores.update(*pair)
            name = names[number * frames].rpartition(" frame")[0] if names else f"clip {len(self.rows)}"
            self.rows.append({"clip": name, **scores.compute()})
        if self.features is not None:
            for kept, clip in zip(self._sets, clips, strict=True):
                kept.append(self.features(to_uint8(clip)).cpu())

    def compute(self) -> dict[str, float]:
        """Means over clips, each where it is a number, and "rfvd_NAME", of two clips or more."""
        names = [name for name in (self.rows[0] if self.rows else {}) if name not in ("clip", "frames")]
        columns = {name: torch.tensor([row[name] for row in self.rows], dtype=torch.float64) for name in names}
        means = {f"clip_{name}": float(column.nanmean()) for name, column in columns.items()}
        if self.features is not None and len(self.rows) > 1:
            decoded, originals = (torch.cat(features) for features in self._sets)
            means[f"rfvd_{self.features.name}"] = frechet_distance(*moments(decoded), *moments(originals))
        return means

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on besides the model and the data module's settings, for the fingerprint."""
        features = None if self.features is None else self.features.identity()
        return {"clips": {"noise": self.noise, "static": STATIC, "features": features}}


def add_clip_scores(rows: list[dict[str, Any]], reconstruction: Tensor, original: Tensor, frames: int) -> None:
    """Add each clip's numbers to the rows of its frames, as "clip_NAME": their means are means over clips.

    Args:
        rows: of `Evaluation.rows`; the last B T are those of these frames. What is not a number is left out.
        reconstruction: (B T, 3, H, W) in [0, 1].
        original: the same shape, uint8 or float in [0, 1].
        frames: T; 1 are images, which get nothing.
    """
    if frames == 1:
        return
    pairs = (images.split(frames) for images in (reconstruction, to_unit_range(original)))
    for start, pair in zip(range(len(rows) - len(original), len(rows), frames), zip(*pairs, strict=True), strict=True):
        scores = ClipScores()
        scores.update(*pair)
        found = {f"clip_{name}": value for name, value in scores.compute().items() if math.isfinite(value)}
        del found["clip_frames"]
        for row in rows[start : start + frames]:
            row.update(found)


def noise_digests(digests: Sequence[str], frames: int, noise: Noise) -> list[str]:
    """What `noise_for` draws each frame's noise by: its own digest, or that of its clip's first frame ("shared")."""
    return [digest if noise == "independent" else digests[k // frames * frames] for k, digest in enumerate(digests)]
