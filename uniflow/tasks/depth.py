"""Metric depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from uniflow.core.specs import FeatureSpec
from uniflow.features import FeatureSource
from uniflow.heads import MetricDepthHead
from uniflow.metrics.depth import DepthProtocol
from uniflow.tasks.dense import DenseTask


class DepthTask(DenseTask):
    """Trains depth heads on the features of one source.

    Logs `val/rmse`, `val/abs_rel`, `val/log10`, `val/delta1`, `val/delta2` and `val/delta3`, and the same as
    `test/...`, by `protocol` (`DepthScores`), over all processes. The protocol is in `RUN/test_results.json` with its
    fingerprint: numbers with different fingerprints are not comparable.

    Batches have "image" (B, 3, H, W) and "depth" (B, H', W') in metres, where 0 is not measured. It may have another
    size: predictions are resized to it.

    Args:
        source: makes the source of the features.
        heads: make the heads, each from the spec of the features.
        protocol: how depth is judged; `DepthProtocol()` if none is given.
        tune_source: whether the source is trained too.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.
    """

    monitor = ("val/rmse", "min")

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        heads: Sequence[Callable[[FeatureSpec], MetricDepthHead]],
        protocol: DepthProtocol | None = None,
        tune_source: bool = False,
        **task: Any,
    ) -> None:
        super().__init__(source=source, heads=heads, tune_source=tune_source, **task)
        self.protocol = protocol or DepthProtocol()

    def build_heads(self, spec: FeatureSpec) -> None:
        super().build_heads(spec)
        for _, head in self.map_heads():
            head.protocol = self.protocol  # type: ignore[assignment]

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Depths in metres; with the protocol's `flip` the mean of those of the images and of their mirror images."""
        maps = self.maps(images)
        if self.protocol.flip:
            mirrored = self.maps(images.flip(-1))
            maps = {name: (depth + mirrored[name].flip(-1)) / 2 for name, depth in maps.items()}
        return maps

    def settings(self) -> dict[str, Any]:
        return self.protocol.settings()
