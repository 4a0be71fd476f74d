"""The same crop and flip for an image and what belongs to it: masks, a depth map, boxes with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, Mask, TVTensor

from uniflow.data.images.transforms import CenterCrop, CropPlan, RandomResizedCrop


class JointCrop:
    """Base class of `JointRandomCrop` and `JointCenterCrop`: applies one `CropPlan` to all fields of a sample.

    A sample is a dict. What is done to a field depends on its type, one of torchvision's `tv_tensors`. Plain tensors
    in the fields of these names need not be wrapped:

    - "image", `Image` (..., H, W): cropped to exactly the pixels of the crop without other fields.
    - "mask" and "depth", `Mask` (..., H, W) of any dtype: resampled to the nearest pixel. So no class is mixed with
      another one, and a depth map keeps the values it has: bilinear resampling would put depths between an object and
      its background, where nothing is, and mix in the value that marks missing measurements. Depths are not divided
      by the zoom factor either: metres stay metres.
    - "boxes", `BoundingBoxes` (n, 4), left, top, right, bottom in pixels: moved along in float32, clipped to the crop
      and dropped if little is left of them, together with their entries in `box_fields`.

    All other fields are left as they are. The result has plain tensors, ready for `uniflow.data.collate`.
    """

    def __init__(self, box_fields: Sequence[str] = ("labels",), min_box_side: float = 1.0) -> None:
        """
        Args:
            box_fields: fields with one entry per box, tensors (n, ...) or sequences; a sample may lack them.
            min_box_side: boxes whose width or height is smaller after the crop, in pixels of the result, are dropped.

        Raises:
            ValueError: if `min_box_side` is not positive.
        """
        if not min_box_side > 0:
            raise ValueError(f"min_box_side must be positive, not {min_box_side}")
        self.box_fields, self.min_box_side = tuple(box_fields), min_box_side

    def _apply(self, sample: dict[str, Any], plan: CropPlan) -> dict[str, Any]:
        result = dict(sample)
        for name, value in sample.items():
            match _wrapped(name, value, sample["image"]):
                case Image() as image:
                    result[name] = plan.image(image.as_subclass(Tensor))
                case Mask() as mask:
                    result[name] = nearest(mask.as_subclass(Tensor), plan)
                case BoundingBoxes() as boxes:
                    result.update(self._boxes(boxes, plan, sample))
        return result

    def _boxes(self, boxes: BoundingBoxes, plan: CropPlan, sample: dict[str, Any]) -> dict[str, Any]:
        """The boxes that are left, and their entries in `box_fields`."""
        boxes = functional.crop(boxes, *plan.cut)
        boxes = functional.resize(boxes, list(plan.resized))
        boxes = functional.crop(boxes, *plan.kept)
        if plan.flipped:
            boxes = functional.horizontal_flip(boxes)
        moved = boxes.as_subclass(Tensor)
        sides = moved[:, 2:] - moved[:, :2]
        kept = (sides >= self.min_box_side).all(1)
        result: dict[str, Any] = {"boxes": moved[kept]}
        for name in self.box_fields:
            if name in sample:
                result[name] = _select(name, sample[name], kept)
        return result


class JointRandomCrop(JointCrop):
    """The training crop of an image and what belongs to it; the random numbers and pixels are `RandomResizedCrop`'s."""

    def __init__(
        self, crop: RandomResizedCrop, box_fields: Sequence[str] = ("labels",), min_box_side: float = 1.0
    ) -> None:
        """
        Args:
            crop: the image's crop, such as `CroppedImages.train_crop`.
            box_fields: see `JointCrop`.
            min_box_side: see `JointCrop`.

        Raises:
            ValueError: if `min_box_side` is not positive.
        """
        super().__init__(box_fields, min_box_side)
        self.crop = crop

    def __call__(
        self, sample: dict[str, Any], generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Crop a sample.

        Args:
            sample: "image" uint8 (3, H, W), and any of the fields named in `JointCrop`.
            generator: the randomness, from `uniflow.data.sampler.sample_generator`.
            size: height and width of the result; a square of the crop's own size by default.

        Raises:
            ValueError: if a field does not fit the image.
        """
        height, width = sample["image"].shape[-2:]
        return self._apply(sample, self.crop.draw(height, width, generator, size))


class JointCenterCrop(JointCrop):
    """The evaluation crop of an image and what belongs to it, with the pixels of `CenterCrop`."""

    def __init__(self, crop: CenterCrop, box_fields: Sequence[str] = ("labels",), min_box_side: float = 1.0) -> None:
        """
        Args:
            crop: the image's crop, such as `CroppedImages.eval_crop`.
            box_fields: see `JointCrop`.
            min_box_side: see `JointCrop`.

        Raises:
            ValueError: if `min_box_side` is not positive.
        """
        super().__init__(box_fields, min_box_side)
        self.crop = crop

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Crop a sample: "image" uint8 (3, H, W), and any of the fields named in `JointCrop`.

        Raises:
            ValueError: if a field does not fit the image.
        """
        return self._apply(sample, self.crop.plan(*sample["image"].shape[-2:]))


def nearest(values: Tensor, plan: CropPlan) -> Tensor:
    """Crop (..., H, W) of any dtype to (..., kept.height, kept.width), each from the source pixel at its centre.

    torchvision resizes a `Mask` with its mode "nearest", which takes the pixel at the upper left corner instead: half
    a pixel of the result away from the image that it belongs to.
    """
    rows = _source(plan.cut.top, plan.cut.height, plan.resized[0], plan.kept.top, plan.kept.height)
    columns = _source(plan.cut.left, plan.cut.width, plan.resized[1], plan.kept.left, plan.kept.width)
    if plan.flipped:
        columns = columns.flip(0)
    return values[..., rows[:, None], columns].contiguous()


def _source(start: int, length: int, resized: int, first: int, count: int) -> Tensor:
    """Source positions of `count` pixels from number `first` on, where `length` pixels become `resized`."""
    pixels = torch.arange(first, first + count)
    return start + (2 * pixels + 1) * length // (2 * resized)


def _wrapped(name: str, value: Any, image: Tensor) -> Image | Mask | BoundingBoxes | None:
    """The value of a field with its type of torchvision; None for a field that is left as it is."""
    height, width = image.shape[-2:]
    if name == "boxes" and not isinstance(value, BoundingBoxes):
        value = BoundingBoxes(_box_tensor(value), format="XYXY", canvas_size=(height, width))
    elif isinstance(value, Tensor) and not isinstance(value, TVTensor):
        wrapper = {"image": Image, "mask": Mask, "depth": Mask}.get(name)
        if wrapper is not None:
            value = wrapper(value)
        elif value.ndim >= 2 and value.shape[-2:] == (height, width):
            raise ValueError(f"{name!r} has the image's height and width; wrap it in tv_tensors.Mask or Image")
    if not isinstance(value, TVTensor):
        return None
    if isinstance(value, BoundingBoxes):
        return _checked_boxes(name, value, (height, width))
    if not isinstance(value, Image | Mask):
        raise ValueError(f"{name!r} is a {type(value).__name__}; only Image, Mask and BoundingBoxes can be cropped")
    if value.shape[-2:] != (height, width):
        raise ValueError(
            f"{name!r} has height and width {tuple(value.shape[-2:])}, but the image has {(height, width)}; "
            "read both at full size (`read_image` without min_side)"
        )
    return value


def _box_tensor(value: Any) -> Tensor:
    boxes = torch.as_tensor(value, dtype=torch.float32)
    if boxes.numel() == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"'boxes' must have shape (n, 4), not {tuple(boxes.shape)}")
    return boxes


def _checked_boxes(name: str, boxes: BoundingBoxes, canvas: tuple[int, int]) -> BoundingBoxes:
    if name != "boxes" or boxes.format != BoundingBoxFormat.XYXY or tuple(boxes.canvas_size) != canvas:
        raise ValueError(
            f"{name!r} holds {boxes.format.value} boxes on a canvas of {tuple(boxes.canvas_size)}; they must be in the "
            f"field 'boxes', XYXY, on the image's {canvas}"
        )
    return BoundingBoxes(boxes.as_subclass(Tensor).float(), format="XYXY", canvas_size=canvas)


def _select(name: str, values: Any, kept: Tensor) -> Any:
    if len(values) != len(kept):
        raise ValueError(f"{name!r} has {len(values)} entries for {len(kept)} boxes")
    if isinstance(values, Tensor):
        return values[kept]
    return [value for value, keep in zip(values, kept.tolist(), strict=True) if keep]
