"""What segmentation and depth share: images of any size, predictions in pixels, pictures, and the protocol's report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.features import FeatureSource
from uniflow.heads import MapHead
from uniflow.layers.grid import pad_to_multiple
from uniflow.layers.precision import without_autocast
from uniflow.metrics import fingerprint
from uniflow.tasks.features import FeatureTask, exact_features
from uniflow.training.trainer import data_of


class DenseTask(FeatureTask):
    """Base class of tasks whose heads predict maps.

    Images whose sides are not multiples of the patch size are padded on the right and at the bottom; what is predicted
    there is cut off again.

    Args:
        source: makes the source of the features.
        heads: make the heads, subclasses of `MapHead`, each from the spec of the features.
        tune_source: whether the source is trained too.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.
    """

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        heads: Sequence[Callable[[FeatureSpec], MapHead]],
        tune_source: bool = False,
        **task: Any,
    ) -> None:
        super().__init__(source=source, heads=heads, tune_source=tune_source, probe_images=0, **task)

    @abstractmethod
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The prediction of each head for images (B, 3, H, W), as it is judged: (B, channels, H, W) by name."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on besides model and images, ready for JSON."""

    def map_heads(self) -> list[tuple[str, MapHead]]:
        """The heads by name."""
        return [(name, head) for name, head in self.heads.items() if isinstance(head, MapHead)]

    def build_heads(self, spec: FeatureSpec) -> None:
        super().build_heads(spec)
        if len(self.map_heads()) < len(self.heads):
            other = next(head for head in self.heads.values() if not isinstance(head, MapHead))
            raise ValueError(
                f"{type(self).__name__}.heads must be subclasses of MapHead, {type(other).__name__} is not: "
                "use FeatureTask for other heads"
            )

    def example_batch(self, images: Tensor) -> dict[str, Any]:
        fields = {field for _, head in self.map_heads() for field in head.labels}
        return {"image": images} | {field: torch.ones_like(images[:, 0]) for field in fields}

    def features(self, images: Tensor) -> EncoderOutput:
        """Features of images of any size, padded to whole patches."""
        return super().features(pad_to_multiple(images, self.source.spec.patch_size))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The prediction of each head for images (B, 3, H, W) in one pass: (B, channels, H, W) by name."""
        features = exact_features(self.features(images))
        height, width = images.shape[-2:]
        with without_autocast(self.device):
            return {name: head(features)[..., :height, :width] for name, head in self.map_heads()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._score(batch, "test")

    def report(self) -> dict[str, Any]:
        """The protocol and its fingerprint: numbers with different fingerprints are not comparable."""
        data = data_of(self.trainer)
        settings = self.settings() | {"data": data.crops() if hasattr(data, "crops") else {}}
        return {**super().report(), "protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """The images, and in colour truth and prediction of each head."""
        few = {key: value[:count] for key, value in batch.items() if isinstance(value, Tensor)}
        rows = {"image": to_unit_range(few["image"])}
        predictions = self.predict(few["image"])
        for name, head in self.map_heads():
            prefix = "" if name == head.name else f"{name} "
            rows |= {f"{prefix}{title}": images for title, images in head.pictures(predictions[name], few).items()}
        return rows

    def _score(self, batch: dict[str, Any], stage: str) -> None:
        predictions = self.predict(batch["image"])
        for name, head in self.map_heads():
            with without_autocast(self.device):
                head.update_metrics(self._metrics[name], predictions[name], batch)
                for row in range(len(batch["image"])):  # of each image, so that batches do not change the mean
                    one = {field: batch[field][row : row + 1] for field in ("image", *head.labels)}
                    loss = head.weight * head.loss(predictions[name][row : row + 1], one)
                    self._averages.update(f"{stage}/{name}", loss, count=1)
