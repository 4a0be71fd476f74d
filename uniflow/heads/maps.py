"""Base class of heads that predict a map of an image's size: segmentation, depth."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from uniflow.core.numbers import NonNegativeFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.base import Head


class MapHead(Head):
    """Predicts a map (B, channels, H, W) in the image's pixels; a subclass implements `values` at any resolution.

    Targets may have another size than the images: predictions are resized to theirs, never the other way.

    Args:
        spec: of the features.
        weight: factor on the loss.
    """

    def __init__(self, spec: FeatureSpec, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        self.patch_size = spec.patch_size

    @abstractmethod
    def values(self, features: EncoderOutput) -> Tensor:
        """Predictions (B, channels, h, w) over the area of the patch grid, at any resolution."""

    @abstractmethod
    def pictures(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Truth and prediction in colour: title -> (B, 3, H, W) in [0, 1], of the size of the images."""

    def forward(self, features: EncoderOutput) -> Tensor:
        """Predictions in the pixels of the patch grid, (B, channels, h patch_size, w patch_size)."""
        rows, columns = features.grid
        return resize_bilinear(self.values(features).float(), (rows * self.patch_size, columns * self.patch_size))

    def target(self, batch: dict[str, Any]) -> Tensor:
        """The map that the batch has for this head, (B, H', W').

        Raises:
            ValueError: if the batch has none, or not one for each image.
        """
        (field,) = self.labels
        if field not in batch:
            raise ValueError(
                f"{type(self).__name__}: the batches have no {field!r}; name a data module that gives it "
                f"(Scenes does with fields: [{field}])"
            )
        target = batch[field]
        if target.ndim != 3 or len(target) != len(batch["image"]):
            raise ValueError(
                f"{type(self).__name__}: {field!r} must have shape (B, H, W) with one map for each of "
                f"{len(batch['image'])} images, not {tuple(target.shape)}"
            )
        return target

    def fitted(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """A prediction without what was padded to whole patches, resized bilinearly to the target's size."""
        height, width = batch["image"].shape[-2:]
        target = self.target(batch)
        return resize_bilinear(prediction[..., :height, :width], (target.shape[-2], target.shape[-1]))


def resize_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at another size, with pixel centres where they were."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
