"""Depth: which pixels are judged, how, and the scores."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from uniflow.core.numbers import CheckedNumbers, PositiveFloat

FORMAT = 1  # raised when a score's definition changes, so that fingerprints do
EIGEN = {(480, 640): (slice(45, 471), slice(41, 601))}  # rows and columns, of NYUv2's images
SCORES = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")


class DepthProtocol(CheckedNumbers):
    """How depth is judged.

    Published numbers of one model differ by a quarter between protocols, so all that they depend on is named here, and
    is in the fingerprint of the results.

    Depths are metres. Pixels whose true depth is 0 (not measured), not finite, or outside of `min_depth` to `max_depth`
    are left out. Predictions are aligned if so asked, and then cut to that range, as BTS (arXiv 1907.10326) and DINOv2
    do.

    Args:
        min_depth: smallest true depth that is judged, in metres.
        max_depth: largest one, inclusive.
        crop: "eigen" leaves out the border of NYUv2's images as Eigen et al. do: rows 45 to 470 and columns 41 to 600
            of 480 x 640 are judged.
        mean_over: "images": the scores are means of each image's scores, as in the tables on NYUv2; "pixels": all
            pixels of the set count the same, so that the RMSE is the root of the set's mean squared error.
        alignment: of each image's prediction to the truth before it is judged: "none" for metric depth; "median"
            multiplies by the ratio of the medians; "scale_shift" fits both by least squares. For relative depth.
        flip: whether predictions are the mean of that of the image and of its mirror image.

    Raises:
        ValueError: if the range is empty, or a choice is unknown.
    """

    def __init__(
        self,
        min_depth: PositiveFloat = 0.001,
        max_depth: PositiveFloat = 10.0,
        crop: Literal["none", "eigen"] = "none",
        mean_over: Literal["images", "pixels"] = "images",
        alignment: Literal["none", "median", "scale_shift"] = "none",
        flip: bool = False,
    ) -> None:
        for name, value, known in (
            ("crop", crop, ("none", "eigen")),
            ("mean_over", mean_over, ("images", "pixels")),
            ("alignment", alignment, ("none", "median", "scale_shift")),
        ):
            if value not in known:
                raise ValueError(f"DepthProtocol.{name} must be one of {', '.join(known)}, got {value!r}")
        if min_depth >= max_depth:
            raise ValueError(f"DepthProtocol: min_depth {min_depth} must be below max_depth {max_depth}")
        self.min_depth, self.max_depth, self.crop = min_depth, max_depth, crop
        self.mean_over, self.alignment, self.flip = mean_over, alignment, flip

    def settings(self) -> dict[str, Any]:
        """All that the scores depend on besides model and images, ready for JSON."""
        return {"format": FORMAT, "units": "metres", **vars(self)}

    def judged(self, depth: Tensor) -> Tensor:
        """Which pixels of true depths (..., H, W) are judged, as booleans.

        Raises:
            ValueError: with the Eigen crop, for maps that are not 480 x 640.
        """
        judged = depth.isfinite() & (depth >= self.min_depth) & (depth <= self.max_depth)
        if self.crop == "eigen":
            size = (depth.shape[-2], depth.shape[-1])
            if size not in EIGEN:
                raise ValueError(
                    f"DepthProtocol.crop: eigen is a part of 480 x 640 pixels, the depth maps have "
                    f"{size[0]} x {size[1]}; evaluate whole images, or set crop: none"
                )
            inside = torch.zeros_like(judged)
            inside[..., *EIGEN[size]] = True
            judged = judged & inside
        return judged

    def aligned(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """The predictions (n,) at the judged pixels of one image, aligned and cut to the range."""
        if self.alignment == "median":
            prediction = prediction * (truth.median() / prediction.median())
        elif self.alignment == "scale_shift":
            centred = prediction - prediction.mean()
            scale = (centred * truth).sum() / centred.square().sum().clamp_min(1e-12)
            prediction = truth.mean() + scale * centred
        return prediction.clamp(self.min_depth, self.max_depth)


class DepthScores(Metric):
    """RMSE in metres, mean relative error, mean |log10| error, and the shares of pixels within a factor of the truth.

    The factors of `delta1`, `delta2` and `delta3` are 1.25, 1.25^2 and 1.25^3 (Eigen et al., arXiv 1406.2283).

    An image without a judged pixel counts nowhere.

    Args:
        protocol: which pixels are judged, and how.
    """

    sums: Tensor
    count: Tensor

    def __init__(self, protocol: DepthProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.add_state("sums", torch.zeros(len(SCORES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Feed predicted and true depths, both (B, H, W) in metres."""
        judged = self.protocol.judged(truth)
        for predicted, true, which in zip(prediction.double(), truth.double(), judged, strict=True):
            if which.any():
                self._add(self.protocol.aligned(predicted[which], true[which]), true[which])

    def compute(self) -> dict[str, Tensor]:
        """The scores by name; nan if no pixel was judged."""
        means = self.sums / self.count
        scores = dict(zip(SCORES, means, strict=True))
        return scores | ({"rmse": scores["rmse"].sqrt()} if self.protocol.mean_over == "pixels" else {})

    def _add(self, predicted: Tensor, true: Tensor) -> None:
        ratio = torch.maximum(predicted / true, true / predicted)
        errors = torch.stack(
            [
                (predicted - true).square().mean(),
                ((predicted - true).abs() / true).mean(),
                (predicted.log10() - true.log10()).abs().mean(),
                *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
            ]
        )
        weight = 1
        if self.protocol.mean_over == "pixels":
            weight = len(true)
        else:
            errors[0] = errors[0].sqrt()
        self.sums += errors * weight
        self.count += weight
