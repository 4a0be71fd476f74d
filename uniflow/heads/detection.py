"""Heads that find objects: torchvision's FCOS, Faster R-CNN and Mask R-CNN over a simple feature pyramid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead as FCOSLayers
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from uniflow.core.numbers import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.base import Head
from uniflow.heads.pyramid import SimplePyramid
from uniflow.heads.strides import CellAnchors, pooler
from uniflow.metrics.detection import DetectionPrecision

Target = dict[str, Tensor]
GROUPS = 32  # of FCOS's group norms, fixed in torchvision


class DetectionHead(Head):
    """Base class of heads that find objects on the last feature map, whatever its patch size.

    A batch has "boxes", a list of (n, 4) left, top, right, bottom in pixels of its images, and "box_labels", a list of
    int64 (n,) from 0. It may have "box_crowd", int64 (n,), 1 for a group that COCO does not count one by one;
    "box_visibility", (n,) in [0, 1]; "image_scale", (B,), pixels of the batch for each pixel of the image file; and
    "box_area", (n,), of the objects in pixels of the file. Crowds are not trained on, and finding them counts neither
    as right nor as wrong; so do objects that are hardly visible. Images without boxes are trained and judged on, too.

    torchvision's own normalisation and resizing have no part in this: its heads get the pyramid's maps.

    Attributes:
        pyramid: makes the maps.
        detector: torchvision's.

    Args:
        spec: of the features.
        num_classes: number of classes, the background not included.
        channels: of the pyramid's maps.
        scales: cells of each map along one patch, see `SimplePyramid`.
        score_threshold: detections with a score up to this are dropped.
        nms_threshold: of two boxes of a class that overlap more than this (IoU), the one with the lower score is
            dropped.
        max_detections: detections of an image that are kept, those of the highest scores; the metrics count as many.
        min_visibility: objects that are visible to a smaller part do not count, see above.
        weight: factor on the loss.

    Raises:
        ValueError: if a number is out of range; in use, if a batch has no boxes or a class that is not there.
        ImportError: in evaluation, without faster-coco-eval.
    """

    name = "detection"
    labels = ("boxes", "box_labels")
    entry_points = ("loss", "losses", "detect")
    first_label: ClassVar[int] = 0  # of the detector
    draws: ClassVar[bool] = False  # whether the loss is that of boxes drawn at random
    masks: ClassVar[bool] = False
    detector: nn.Module

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: PositiveInt,
        channels: PositiveInt = 256,
        scales: Sequence[PositiveFloat] = (4, 2, 1, 0.5),
        score_threshold: UnitFloat = 0.05,
        nms_threshold: UnitFloat = 0.5,
        max_detections: PositiveInt = 100,
        min_visibility: UnitFloat = 0.0,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(weight)
        self.num_classes, self.max_detections, self.min_visibility = num_classes, max_detections, min_visibility
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.pyramid = SimplePyramid(spec.embed_dim, channels, scales)
        self.strides = tuple(spec.patch_size / scale for scale in self.pyramid.scales)

    def check_data(self, data: Any) -> None:
        names = getattr(data, "class_names", None)
        if names is not None and len(names) > self.num_classes:
            kind = type(self).__name__
            raise ValueError(f"the data has {len(names)} classes, {kind}.num_classes is {self.num_classes}")

    def forward(self, features: EncoderOutput) -> dict[str, Tensor]:
        """The pyramid's maps in float32, finest first, as "0", "1", ..."""
        maps = self.pyramid(features.feature_map())
        return {str(level): level_map.float() for level, level_map in enumerate(maps)}

    def loss(self, prediction: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        return torch.stack(list(self.losses(prediction, batch).values())).sum()

    def losses(self, prediction: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        targets = self.targets(batch)
        with _mode(self.detector, training=True), _same_draws(self.draws and not torch.is_grad_enabled()):
            losses = self.detector_losses(prediction, batch["image"], targets)
        return {name.removeprefix("loss_"): loss for name, loss in losses.items()}

    def detect(self, prediction: dict[str, Tensor], images: Tensor) -> list[Target]:
        """Objects found, best first: for each image "boxes" (n, 4) in pixels, inside of it; "scores" (n,) in [0, 1] and
        "labels" int64 (n,) from 0; "masks" bool (n, H, W) if the head finds masks."""
        with _mode(self.detector, training=False):
            found = self.detector_results(prediction, images)
        return [image | {"labels": image["labels"] - self.first_label} for image in found]

    def metrics(self) -> MetricCollection:
        """See `DetectionPrecision`."""
        metric = DetectionPrecision(self.max_detections, self.masks)
        return MetricCollection({"detection": metric}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, prediction: dict[str, Tensor], batch: dict[str, Any]) -> None:
        found, true = self.detect(prediction, batch["image"]), self.truth(batch)
        if "image_scale" in batch:  # COCO's ranges of sizes are those of the files
            for image, truth, scale in zip(found, true, batch["image_scale"].tolist(), strict=True):
                image["boxes"], truth["boxes"] = image["boxes"] / scale, truth["boxes"] / scale
        metrics.update(found, true)

    def truth(self, batch: dict[str, Any]) -> list[Target]:
        """What is to be found in each image: "boxes", "labels" from 0, "iscrowd", and "area" and "masks" where needed.

        Raises:
            ValueError: if the batch has no boxes, or a class that the head does not have.
        """
        if missing := [name for name in self.labels if name not in batch]:
            raise ValueError(
                f"{type(self).__name__} needs {' and '.join(missing)} in a batch; with Scenes set data.fields: [boxes]"
            )
        masks = _masks(batch) if self.masks else None
        truth = []
        for number, (boxes, labels) in enumerate(zip(batch["boxes"], batch["box_labels"], strict=True)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{type(self).__name__}: box_labels must be in 0 ... {self.num_classes - 1} (num_classes - 1), "
                    f"got {int(labels.min())} ... {int(labels.max())}"
                )
            ignored = batch["box_crowd"][number].bool() if "box_crowd" in batch else torch.zeros_like(labels).bool()
            if "box_visibility" in batch:
                ignored = ignored | (batch["box_visibility"][number] < self.min_visibility)
            image = {"boxes": boxes.float().reshape(-1, 4), "labels": labels.long(), "iscrowd": ignored.long()}
            if "box_area" in batch:
                image["area"] = batch["box_area"][number]
            if masks is not None:
                image["masks"] = masks[number]
            truth.append(image)
        return truth

    def targets(self, batch: dict[str, Any]) -> list[Target]:
        """What the detector is trained on: the truth without crowds, with the detector's labels."""
        targets = []
        for image in self.truth(batch):
            kept = image.pop("iscrowd") == 0
            target = {name: values[kept] for name, values in image.items()}
            targets.append(target | {"labels": target["labels"] + self.first_label})
        return targets

    @abstractmethod
    def detector_losses(self, maps: dict[str, Tensor], images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """torchvision's losses, in training mode."""

    @abstractmethod
    def detector_results(self, maps: dict[str, Tensor], images: Tensor) -> list[Target]:
        """torchvision's results, in evaluation mode."""


class FCOSHead(DetectionHead):
    """FCOS (arXiv 1904.01355): each cell says which class it lies on and how far away the sides of the box are.

    Args:
        spec: of the features.
        num_classes: number of classes, the background not included.
        convs: convolutions before each prediction; 4 in the paper.
        head: the arguments of `DetectionHead`; `channels` must be a multiple of 32.

    Raises:
        ValueError: if `channels` is not a multiple of 32.
    """

    detector: FCOS

    def __init__(self, spec: FeatureSpec, num_classes: PositiveInt, convs: PositiveInt = 4, **head: Any) -> None:
        super().__init__(spec, num_classes, **head)
        channels = self.pyramid.channels
        if channels % GROUPS:
            raise ValueError(f"FCOSHead.channels must be a multiple of {GROUPS}, its groups, got {channels}")
        self.detector = FCOS(
            _Maps(channels),
            num_classes,
            anchor_generator=CellAnchors(self.strides),
            head=FCOSLayers(channels, 1, num_classes, convs),
            score_thresh=self.score_threshold,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.max_detections,
        )

    def detector_losses(self, maps: dict[str, Tensor], images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        levels = list(maps.values())
        anchors = self.detector.anchor_generator(_image_list(images), levels)
        return self.detector.compute_loss(targets, self.detector.head(levels), anchors, _cells(levels))

    def detector_results(self, maps: dict[str, Tensor], images: Tensor) -> list[Target]:
        levels, listed = list(maps.values()), _image_list(images)
        cells = _cells(levels)
        outputs = {name: list(values.split(cells, dim=1)) for name, values in self.detector.head(levels).items()}
        anchors = [list(image.split(cells)) for image in self.detector.anchor_generator(listed, levels)]
        return self.detector.postprocess_detections(outputs, anchors, listed.image_sizes)


class FasterRCNNHead(DetectionHead):
    """Faster R-CNN (arXiv 1506.01497): boxes are proposed, then each is classified and corrected.

    Proposals start from anchors of 8 strides on each map, as ViTDet's, and on a further one of twice the last stride.

    Args:
        spec: of the features.
        num_classes: number of classes, the background not included.
        proposals: proposals of an image that are looked at; in training twice as many, out of which 512 are drawn.
        hidden: width of the two layers behind each proposal.
        head: the arguments of `DetectionHead`.
    """

    first_label = 1  # 0 is the background
    draws = True
    detector: FasterRCNN

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: PositiveInt,
        proposals: PositiveInt = 1000,
        hidden: PositiveInt = 1024,
        **head: Any,
    ) -> None:
        super().__init__(spec, num_classes, **head)
        strides = (*self.strides, 2 * self.strides[-1])
        self.detector = self.make_detector(
            box_roi_pool=pooler(self.strides, 7),
            box_head=TwoMLPHead(self.pyramid.channels * 7**2, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
            rpn_anchor_generator=CellAnchors(strides, size=8.0, aspect_ratios=(0.5, 1.0, 2.0)),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=2 * proposals,
            rpn_post_nms_top_n_test=proposals,
            box_score_thresh=self.score_threshold,
            box_nms_thresh=self.nms_threshold,
            box_detections_per_img=self.max_detections,
        )

    def make_detector(self, **settings: Any) -> FasterRCNN:
        """torchvision's network, from its own arguments."""
        return FasterRCNN(_Maps(self.pyramid.channels), **settings)

    def forward(self, features: EncoderOutput) -> dict[str, Tensor]:
        maps = super().forward(features)
        last = maps[str(len(maps) - 1)]
        return maps | {"pool": F.max_pool2d(last, 2, ceil_mode=True)}

    def detector_losses(self, maps: dict[str, Tensor], images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        listed = _image_list(images)
        proposals, losses = self.detector.rpn(listed, maps, targets)
        _, more = self.detector.roi_heads(maps, proposals, listed.image_sizes, targets)
        return losses | more

    def detector_results(self, maps: dict[str, Tensor], images: Tensor) -> list[Target]:
        listed = _image_list(images)
        proposals, _ = self.detector.rpn(listed, maps)
        return self.detector.roi_heads(maps, proposals, listed.image_sizes)[0]


class MaskRCNNHead(FasterRCNNHead):
    """Mask R-CNN (arXiv 1703.06870): Faster R-CNN, and a mask for each box.

    A batch also has "box_masks", a list of bool (n, H, W); or "instances", integers (B, H, W), 0 where no object is,
    whose numbers rise in the order of the boxes. Crowds need a mask like other objects.

    Args:
        spec: of the features.
        num_classes: number of classes, the background not included.
        mask_channels: width of the four convolutions behind each mask.
        head: the arguments of `FasterRCNNHead` and `DetectionHead`.

    Raises:
        ValueError: in use, if a batch has no masks, or not one for each box.
    """

    masks = True

    def __init__(
        self, spec: FeatureSpec, num_classes: PositiveInt, mask_channels: PositiveInt = 256, **head: Any
    ) -> None:
        self.mask_settings = (mask_channels, num_classes + 1)
        super().__init__(spec, num_classes, **head)

    def make_detector(self, **settings: Any) -> FasterRCNN:
        width, classes = self.mask_settings
        return MaskRCNN(
            _Maps(self.pyramid.channels),
            mask_roi_pool=pooler(self.strides, 14),
            mask_head=MaskRCNNHeads(self.pyramid.channels, [width] * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, classes),
            **settings,
        )

    def detector_results(self, maps: dict[str, Tensor], images: Tensor) -> list[Target]:
        height, width = images.shape[-2:]
        found = super().detector_results(maps, images)
        for image in found:
            pasted = paste_masks_in_image(image["masks"], image["boxes"], (height, width))
            image["masks"] = pasted.reshape(-1, height, width) > 0.5
        return found


class _Maps(nn.Module):
    """Tells torchvision the width of the maps; it computes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


@contextmanager
def _mode(detector: nn.Module, training: bool) -> Iterator[None]:
    """torchvision's modules give losses in training mode, and results otherwise; nothing else depends on it."""
    before = detector.training
    detector.train(training)
    try:
        yield
    finally:
        detector.train(before)


@contextmanager
def _same_draws(fixed: bool) -> Iterator[None]:
    """With `fixed` the same random numbers every time, which leave those of training as they are."""
    if not fixed:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _image_list(images: Tensor) -> ImageList:
    return ImageList(images, [tuple(images.shape[-2:])] * len(images))


def _cells(levels: Sequence[Tensor]) -> list[int]:
    return [level.shape[-2] * level.shape[-1] for level in levels]


def _masks(batch: dict[str, Any]) -> list[Tensor]:
    """The mask of each box, bool (n, H, W) for each image.

    Raises:
        ValueError: if there are none, or not one for each box.
    """
    if "box_masks" in batch:
        masks = [image.bool() for image in batch["box_masks"]]
    elif "instances" in batch:
        numbers = [image[image > 0].unique() for image in batch["instances"]]
        masks = [i == n[:, None, None] for i, n in zip(batch["instances"], numbers, strict=True)]
    else:
        raise ValueError(
            "MaskRCNNHead needs box_masks or instances in a batch; with Scenes set data.fields: [boxes, instances], "
            "with COCODetection data.masks: true"
        )
    for image, boxes in zip(masks, batch["boxes"], strict=True):
        if len(image) != len(boxes):
            raise ValueError(f"MaskRCNNHead: an image has {len(boxes)} boxes, but {len(image)} masks")
    return masks
