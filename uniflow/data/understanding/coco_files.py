"""COCO's annotation files: boxes, classes and masks by image, checked once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.core.files import printable
from uniflow.core.json_files import LARGE, read_json_object
from uniflow.data.errors import DataError

Polygons = list[list[float]]
Segmentation = Polygons | dict[str, Any]  # polygons, or a run-length encoding


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file.

    Attributes:
        id: of the image.
        name: of its file.
        size: height and width in pixels.
        boxes: (n, 4) float32, left, top, right, bottom in pixels, inside of the image.
        labels: (n,) int64, positions in `CocoFile.category_ids`.
        crowd: (n,) int64, 1 for a group of objects that is not counted one by one.
        area: (n,) float32, of the objects in pixels.
        segmentations: one for each box; empty if they were not asked for.
    """

    id: int
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segmentations: tuple[Segmentation, ...] = ()


class CocoFile:
    """The content of an annotation file such as `instances_train2017.json`.

    COCO numbers its 80 classes from 1 to 90, with gaps. Here they are 0 ... 79, in the order of their ids, and
    `category_ids` leads back.

    Boxes are cut to their image. What is left without height or width, and annotations of images that the file does not
    list, are dropped; one warning says how many, and which. Images without boxes are kept.

    Attributes:
        category_ids: COCO's number of each class.
        class_names: its name.
        images: in the order of their ids.

    Args:
        path: of the file.
        masks: whether segmentations are kept.

    Raises:
        ValueError: if the file cannot be read or has another form, an annotation has a class that the file does not
            list, or one has no segmentation though `masks` asks for it.
    """

    def __init__(self, path: Path, masks: bool = False) -> None:
        self.path, self.masks = path, masks
        try:
            content = read_json_object(path, LARGE)
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.category_ids = [int(category["id"]) for category in categories]
            self.class_names = [printable(str(category["name"])) for category in categories]
            self._labels = {id: label for label, id in enumerate(self.category_ids)}
            listed = sorted(content["images"], key=lambda image: image["id"])
            sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in listed}
            annotations = self._checked(content["annotations"], sizes)
            self.images = [
                self._image(int(i["id"]), str(i["file_name"]), sizes[i["id"]], annotations[i["id"]]) for i in listed
            ]
        except OSError as error:
            raise DataError(f"the annotations {path} cannot be read ({error.strerror or error})") from error
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path} is not an annotation file of COCO's form, a JSON object with images, annotations and "
                f"categories ({type(error).__name__}: {one_line(error)})"
            ) from error
        if len(self._labels) < len(self.category_ids):
            raise DataError(f"{path} lists two categories with the same id")

    def _checked(
        self, annotations: list[dict[str, Any]], sizes: dict[int, tuple[int, int]]
    ) -> dict[int, list[dict[str, Any]]]:
        """The annotations of each image that can be used, with their "label" and their box as "inside"."""
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        empty: list[int] = []
        homeless: list[int] = []
        for annotation in annotations:
            number, size = annotation["id"], sizes.get(annotation["image_id"])
            if annotation["category_id"] not in self._labels:
                raise DataError(
                    f"{self.path}: annotation {number} has category_id {annotation['category_id']}, which the file's "
                    f"categories do not list ({self.category_ids[0]} ... {self.category_ids[-1]})"
                )
            if size is None:
                homeless.append(number)
                continue
            left, top, width, height = map(float, annotation["bbox"])
            inside = np.clip([left, top, left + width, top + height], 0, [size[1], size[0]] * 2)
            if not (inside[2:] > inside[:2]).all():  # not for nan, either
                empty.append(number)
                continue
            if self.masks and not annotation.get("segmentation"):
                raise DataError(f"{self.path}: annotation {number} has no segmentation, but masks are asked for")
            by_image[annotation["image_id"]].append(annotation | {"inside": inside})
        reports = {"boxes without area inside of their image": empty, "boxes of images that are not listed": homeless}
        for what, numbers in reports.items():
            if numbers:
                named = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
                rank_zero_warn(f"{self.path}: {len(numbers)} {what} are left out: annotation {named}")
        return by_image

    def _image(self, id: int, name: str, size: tuple[int, int], annotations: Sequence[dict[str, Any]]) -> CocoImage:
        boxes = np.array([a["inside"] for a in annotations], np.float32).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = [a.get("area", side.prod()) for a, side in zip(annotations, sides, strict=True)]
        return CocoImage(
            id,
            name,
            size,
            boxes,
            np.array([self._labels[a["category_id"]] for a in annotations], np.int64),
            np.array([int(a.get("iscrowd", 0)) for a in annotations], np.int64),
            np.array(areas, np.float32),
            tuple(a["segmentation"] for a in annotations) if self.masks else (),
        )


def decode_masks(image: CocoImage) -> Tensor:
    """The masks of an image, uint8 (n, H, W) of 0 and 1, from polygons and run-length encodings.

    Raises:
        ImportError: without faster-coco-eval.
        ValueError: if a segmentation cannot be decoded, or has another size than the image.
    """
    try:
        from faster_coco_eval.core import mask as coder  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("COCO's masks need faster-coco-eval: pip install 'uniflow[detection]'") from error
    height, width = image.size
    masks = np.zeros((len(image.segmentations), height, width), np.uint8)
    for number, segmentation in enumerate(image.segmentations):
        try:
            encoded = coder.frPyObjects(segmentation, height, width) if _is_plain(segmentation) else segmentation
            decoded = coder.decode(coder.merge(encoded) if isinstance(encoded, list) else encoded)
            if decoded.shape != image.size:
                raise ValueError(f"it has {decoded.shape[0]} x {decoded.shape[1]} pixels")
            masks[number] = decoded
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise DataError(
                f"the segmentation of object {number} of {printable(image.name)} cannot be decoded for "
                f"{height} x {width} pixels ({one_line(error)})"
            ) from error
    return torch.from_numpy(masks)


def _is_plain(segmentation: Segmentation) -> bool:
    """Whether these are polygons, or counts that are not compressed."""
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)
