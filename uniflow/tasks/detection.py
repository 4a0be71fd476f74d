"""Object detection on the features of any source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uniflow.core.numbers import UnitFloat
from uniflow.core.pixels import to_unit_range
from uniflow.heads import DetectionHead
from uniflow.pictures.boxes import draw_boxes, enlarged
from uniflow.tasks.features import FeatureTask
from uniflow.training.trainer import data_of


class DetectionTask(FeatureTask):
    """Finds objects, with a `DetectionHead` on the features of a source; the best epoch is that of the highest mAP.

    Logs COCO's average precision as `val/map` and `test/map`, `map_50` and so on (see `DetectionPrecision`), and in
    training each of the head's losses as `train/detection_NAME`. Batches: see `DetectionHead`.

    Args:
        shown_score: the pictures show detections with at least this score.
        **task: the arguments of `FeatureTask`.

    Raises:
        ValueError: if no head is a `DetectionHead`.
    """

    monitor = ("val/map", "max")

    def __init__(self, *, shown_score: UnitFloat = 0.5, **task: Any) -> None:
        super().__init__(**task)
        self.shown_score = shown_score

    def build(self) -> None:
        super().build()
        if self._detector() is None:
            raise ValueError(f"{type(self).__name__}.heads has no DetectionHead, such as FCOSHead")

    def example_batch(self, images: Tensor) -> dict[str, Any]:
        height, width = images.shape[-2:]
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]], device=images.device)
        label = torch.zeros(1, dtype=torch.int64, device=images.device)
        mask = torch.ones(1, height, width, dtype=torch.bool, device=images.device)
        count = len(images)
        return {"image": images, "boxes": [box] * count, "box_labels": [label] * count, "box_masks": [mask] * count}

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """Input, true boxes, and found boxes with their scores."""
        head = self._detector()
        if head is None or not {"boxes", "box_labels"} <= batch.keys():
            return {}
        images = batch["image"][:count]
        found = head.detect(head(self.features(images)), images)
        shown = [image["scores"] >= self.shown_score for image in found]
        boxes, labels, scores = (
            [image[name][kept].flip(0) for image, kept in zip(found, shown, strict=True)]  # the best on top
            for name in ("boxes", "labels", "scores")
        )
        pictures, factor = enlarged(to_unit_range(images))
        names = self._class_names(head.num_classes)

        def drawn(boxes: list[Tensor], labels: list[Tensor], scores: list[Tensor] | None = None) -> Tensor:
            numbers = [image.tolist() for image in labels]
            texts = [[names[label] for label in image] for image in numbers]
            if scores is not None:
                texts = [
                    [f"{text} {score:.2f}" for text, score in zip(image, values.tolist(), strict=True)]
                    for image, values in zip(texts, scores, strict=True)
                ]
            return draw_boxes(pictures, [image * factor for image in boxes], numbers, texts)

        return {
            "input": pictures.float().cpu(),
            "true boxes": drawn(batch["boxes"][:count], batch["box_labels"][:count]),
            "found boxes": drawn(boxes, labels, scores),
        }

    def _detector(self) -> DetectionHead | None:
        return next((head for _, head in self.named_heads() if isinstance(head, DetectionHead)), None)

    def _class_names(self, count: int) -> list[str]:
        """Names of the classes, if the data module knows them, or numbers."""
        data = data_of(self.trainer) if self._trainer is not None else None
        names = list(getattr(data, "class_names", None) or [])
        return names + [str(number) for number in range(len(names), count)]
