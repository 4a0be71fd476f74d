"""Mean average precision over all processes, as COCO defines it."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics.detection import MeanAveragePrecision

from uniflow.core.distributed import gather_lists
from uniflow.core.numbers import CheckedNumbers, PositiveInt

MAIN = ("map", "map_50", "map_75")
SIZES = ("map_small", "map_medium", "map_large")


class DetectionPrecision(CheckedNumbers, MeanAveragePrecision):
    """COCO's average precision of boxes, and with `masks` of masks, by faster-coco-eval.

    `map` is the mean over IoU thresholds .5, .55, ..., .95 and over classes, `map_50` and `map_75` have one threshold,
    and `map_small`, `map_medium`, `map_large` count objects of up to 32^2, up to 96^2 and more pixels. Masks have
    `mask_map`, `mask_map_50` and `mask_map_75`. All are in [0, 1].

    COCO marks what is not defined with -1. Here a size of which there are no objects is left out, and the others are
    nan if there are no objects at all, so that no -1 gets into an average or a curve.

    Args:
        max_detections: detections of an image that count, those of the highest scores; 100 in COCO.
        masks: whether masks are judged, too.

    Raises:
        ImportError: without faster-coco-eval.
    """

    def __init__(self, max_detections: PositiveInt = 100, masks: bool = False) -> None:
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise ImportError("mean average precision needs faster-coco-eval: pip install 'uniflow[detection]'")
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox",
            # The precision is that at the last of these numbers.
            max_detection_thresholds=sorted([1, min(10, max_detections), max_detections]),
            backend="faster_coco_eval",
        )
        self.masks = masks
        self.warn_on_many_detections = False  # the number is a setting

    def compute(self) -> dict[str, Tensor]:
        values = super().compute()
        prefix = "bbox_" if self.masks else ""
        result = {name: _defined(values[prefix + name]) for name in MAIN}
        result |= {name: values[prefix + name] for name in SIZES if values[prefix + name] >= 0}
        if self.masks:
            result |= {f"mask_{name}": _defined(values[f"segm_{name}"]) for name in MAIN}
        return result

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics gathers these lists image by image, which hangs if processes have unequal numbers of images.
        states = {name: getattr(self, name) for name in self._reductions}
        on_cpu = tree_map_only(Tensor, Tensor.cpu, states)
        for name, values in on_cpu.items():
            setattr(self, name, tree_map_only(Tensor, lambda value: value.to(self.device), gather_lists(values)))


def _defined(value: Tensor) -> Tensor:
    return value if value >= 0 else torch.full_like(value, math.nan)
