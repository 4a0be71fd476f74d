"""Heads for semantic segmentation: base class, and the linear one."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torchmetrics import MetricCollection

from uniflow.core.numbers import Int2, NonNegativeFloat, NonNegativeInt, UnitFloatBelow1
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.maps import MapHead
from uniflow.metrics.segmentation import SegmentationScores
from uniflow.pictures.dense import overlay


class SegmentationHead(MapHead):
    """Class of each pixel ("mask", integers (B, H, W)): cross entropy at the mask's size.

    A subclass implements `values`: logits (B, num_classes, h, w) at any resolution.

    Labels are used as they are: a data set whose class 0 means "no class" is brought to classes from 0 and
    `ignore_index` by its data module, once.

    Args:
        spec: of the features.
        num_classes: classes, from 0 on; a background that is to be learned is one of them.
        ignore_index: label of pixels that count neither in the loss nor in the scores.
        weight: factor on the loss.

    Raises:
        ValueError: if `ignore_index` is one of the classes.
    """

    name = "segmentation"
    labels = ("mask",)

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        ignore_index: NonNegativeInt = 255,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, weight)
        if ignore_index < num_classes:
            raise ValueError(
                f"{type(self).__name__}.ignore_index must not be one of the classes 0 to {num_classes - 1}, "
                f"got {ignore_index}"
            )
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def check_data(self, data: Any) -> None:
        names = getattr(data, "mask_names", None)
        if names is not None and len(names) > self.num_classes:
            raise ValueError(
                f"the masks have {len(names)} classes, {type(self).__name__}.num_classes is {self.num_classes}"
            )

    def target(self, batch: dict[str, Any]) -> Tensor:
        """The mask, int64 (B, H, W).

        Raises:
            ValueError: if there is none, or it has a label that is neither a class nor `ignore_index`.
        """
        mask = super().target(batch).long()
        wrong = ((mask < 0) | (mask >= self.num_classes)) & (mask != self.ignore_index)
        if not isinstance(mask, FakeTensor) and wrong.any():  # `uniflow plan` computes without values
            raise ValueError(
                f"{type(self).__name__}: a mask has the label {int(mask[wrong][0])}; labels must be 0 to "
                f"{self.num_classes - 1}, or {self.ignore_index} for pixels without a class"
            )
        return mask

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """Mean cross entropy over the pixels that have a class; 0 if none has."""
        mask, logits = self.target(batch), self.fitted(prediction, batch)
        total = F.cross_entropy(logits, mask, ignore_index=self.ignore_index, reduction="sum")
        return total / (mask != self.ignore_index).sum().clamp_min(1)

    def metrics(self) -> MetricCollection:
        """`miou`, `mean_accuracy` and `pixel_accuracy`, see `SegmentationScores`."""
        return MetricCollection({"scores": SegmentationScores(self.num_classes, self.ignore_index)})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(self.fitted(prediction, batch).argmax(dim=1), self.target(batch))

    def pictures(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, mask = to_unit_range(batch["image"]), self.target(batch)
        found = self.fitted(prediction, batch).argmax(dim=1)
        return {
            "truth": overlay(images, mask, self.num_classes),
            "prediction": overlay(images, found, self.num_classes),
        }


class LinearSegmentation(SegmentationHead):
    """Batch norm and a 1 x 1 convolution on the patch tokens; the logits are resized bilinearly (DINOv2, arXiv
    2304.07193).

    The batch norm brings any source's features to one scale, so that one learning rate serves all.

    Args:
        spec: of the features.
        num_classes: classes, from 0 on.
        layers: "last" reads the source's last feature map, "all" the concatenation of all of them (DINOv2's multi-layer
            head with a source of 4 layers).
        dropout: share of the features that is set to 0 in training.
        ignore_index: label of pixels that count neither in the loss nor in the scores.
        weight: factor on the loss.

    Raises:
        ValueError: if `ignore_index` is one of the classes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        layers: Literal["last", "all"] = "last",
        dropout: UnitFloatBelow1 = 0.0,
        ignore_index: NonNegativeInt = 255,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, num_classes, ignore_index, weight)
        self.layers = layers
        width = spec.embed_dim * (spec.num_layers if layers == "all" else 1)
        self.classify = nn.Sequential(nn.BatchNorm2d(width), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))

    def values(self, features: EncoderOutput) -> Tensor:
        return self.classify(joined(features, self.layers))


def joined(features: EncoderOutput, layers: Literal["last", "all"]) -> Tensor:
    """The last feature map, or all of them along the channels, as an image (B, D, h, w) or (B, L D, h, w)."""
    if layers == "last":
        return features.feature_map()
    return torch.cat([features.feature_map(layer) for layer in range(len(features.hidden_states))], dim=1)
