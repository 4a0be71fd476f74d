"""Heads for metric depth: base class with its losses, and the linear one with bins."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from uniflow.core.numbers import Int2, NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.maps import MapHead, resize_bilinear
from uniflow.heads.segmentation import joined
from uniflow.metrics.depth import DepthProtocol, DepthScores
from uniflow.pictures.dense import depth_picture

EPSILON = 1e-3  # metres, added before logarithms (DINOv2)


class MetricDepthHead(MapHead):
    """Depth of each pixel in metres ("depth", (B, H, W); 0 is not measured). A subclass implements `values`: depths
    (B, 1, h, w) at any resolution.

    Loss: scale-invariant logarithmic (Eigen et al., arXiv 1406.2283, in the form of AdaBins, arXiv 2011.14141),
    sqrt(mean g^2 - `invariance` (mean g)^2) with g = log d - log d* over the measured pixels of a batch, plus
    `gradient_weight` times the differences of g between neighbours at 4 scales (MegaDepth, arXiv 1804.00607), as DINOv2
    trains its depth heads.

    Args:
        spec: of the features.
        min_depth: smallest depth that is predicted, in metres.
        max_depth: largest one; true depths beyond it are left out of the loss.
        invariance: 1 forgives a wrong scale altogether, 0 not at all.
        gradient_weight: factor on the loss of gradients; 0 switches it off.
        weight: factor on the loss.

    Raises:
        ValueError: if the range is empty.
    """

    name = "depth"
    labels = ("depth",)

    def __init__(
        self,
        spec: FeatureSpec,
        min_depth: PositiveFloat = 0.001,
        max_depth: PositiveFloat = 10.0,
        invariance: UnitFloat = 0.85,
        gradient_weight: NonNegativeFloat = 0.5,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, weight)
        if min_depth >= max_depth:
            raise ValueError(f"{type(self).__name__}: min_depth {min_depth} must be below max_depth {max_depth}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.invariance, self.gradient_weight = invariance, gradient_weight
        self.protocol = DepthProtocol(max_depth=max_depth)  # a `DepthTask` puts its own here

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """See the class; 0 if no pixel of the batch is measured."""
        truth, predicted = self.target(batch).float(), self.fitted(prediction, batch).squeeze(1)
        measured = truth.isfinite() & (truth > 0) & (truth <= self.max_depth)
        errors = (predicted + EPSILON).log() - (truth.where(measured, 1.0) + EPSILON).log()
        errors, count = errors.where(measured, 0.0), measured.sum().clamp_min(1)
        mean, mean_square = errors.sum() / count, errors.square().sum() / count
        # Of equal predictions and truths the root has no gradient.
        loss = (mean_square - self.invariance * mean.square()).clamp_min(1e-12).sqrt()
        if self.gradient_weight:
            loss = loss + self.gradient_weight * gradient_loss(errors, measured)
        return loss * measured.any()

    def metrics(self) -> MetricCollection:
        """The scores of `DepthScores`, by `protocol`."""
        return MetricCollection({"scores": DepthScores(self.protocol)})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(self.fitted(prediction, batch).squeeze(1), self.target(batch))

    def pictures(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        truth, size = self.target(batch).float(), to_unit_range(batch["image"]).shape[-2:]
        measured = truth[truth.isfinite() & (truth > 0)]
        low, high = (float(measured.min()), float(measured.max())) if len(measured) else (0.1, self.max_depth)
        maps = {"truth": truth.nan_to_num(0, 0, 0), "prediction": self.fitted(prediction, batch).squeeze(1)}
        return {title: depth_picture(depth, low, high, (size[0], size[1])) for title, depth in maps.items()}


def gradient_loss(errors: Tensor, measured: Tensor, scales: int = 4) -> Tensor:
    """Mean |difference| of errors (B, H, W) between measured neighbours, at steps 1, 2, 4, ...; the sum over scales."""
    total = errors.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        coarse, known = errors[:, ::step, ::step], measured[:, ::step, ::step]
        for axis in (1, 2):
            pairs = _both(known, axis)
            total = total + (coarse.diff(dim=axis).abs() * pairs).sum() / pairs.sum().clamp_min(1)
    return total


def _both(known: Tensor, axis: int) -> Tensor:
    length = known.shape[axis]
    return known.narrow(axis, 0, max(length - 1, 0)) & known.narrow(axis, min(1, length), max(length - 1, 0))


class LinearDepth(MetricDepthHead):
    """Depth as a mean of bins, linearly from each patch token: DINOv2's (arXiv 2304.07193) linear head.

    Logits l of `bins` depths, evenly spaced from `min_depth` to `max_depth`, are resized by `upsample`. Their weights
    are relu(l) + 0.1, divided by their sum, and the depth is the bins' weighted mean (AdaBins, arXiv 2011.14141, with
    fixed bins). A batch norm before them brings any source's features to one scale.

    Args:
        spec: of the features.
        bins: number of bins.
        layers: "last" reads the source's last feature map, "all" the concatenation of all of them.
        class_token: whether the class token of the same layers stands beside each patch token, as in DINOv2's.
        upsample: factor by which logits are resized bilinearly before they become depths.
        min_depth: the nearest bin, in metres.
        max_depth: the farthest bin.
        invariance: see `MetricDepthHead`.
        gradient_weight: see `MetricDepthHead`.
        weight: factor on the loss.

    Raises:
        ValueError: if the range is empty, or there is no class token to read.
    """

    centres: Tensor

    def __init__(
        self,
        spec: FeatureSpec,
        bins: Int2 = 256,
        layers: Literal["last", "all"] = "last",
        class_token: bool = False,
        upsample: PositiveInt = 4,
        min_depth: PositiveFloat = 0.001,
        max_depth: PositiveFloat = 10.0,
        invariance: UnitFloat = 0.85,
        gradient_weight: NonNegativeFloat = 0.5,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, min_depth, max_depth, invariance, gradient_weight, weight)
        if class_token and not spec.num_prefix_tokens:
            raise ValueError("LinearDepth.class_token: these features have no class token; set it to false")
        self.layers, self.class_token, self.upsample = layers, class_token, upsample
        width = spec.embed_dim * (spec.num_layers if layers == "all" else 1) * (2 if class_token else 1)
        self.predict = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, bins, 1))
        self.register_buffer("centres", torch.linspace(min_depth, max_depth, bins), persistent=False)

    def values(self, features: EncoderOutput) -> Tensor:
        maps = joined(features, self.layers)
        if self.class_token:
            tokens = features.prefix_tokens if self.layers == "all" else features.prefix_tokens[-1:]
            first = torch.cat([prefix[:, 0] for prefix in tokens], dim=1)
            maps = torch.cat([maps, first[:, :, None, None].expand(-1, -1, *maps.shape[-2:])], dim=1)
        logits = self.predict(maps)
        rows, columns = logits.shape[-2:]
        weights = resize_bilinear(logits, (rows * self.upsample, columns * self.upsample)).relu() + 0.1
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), self.centres).unsqueeze(1)
