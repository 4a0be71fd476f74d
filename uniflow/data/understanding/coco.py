"""COCO's official layout: folders of images, and one JSON file of annotations for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import Mask

from uniflow.core.files import printable
from uniflow.data.base import ImageDataModule
from uniflow.data.errors import DataError
from uniflow.data.images.folder import name_to_unit
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.data.joint import JointCenterCrop, JointRandomCrop
from uniflow.data.sampler import sample_generator
from uniflow.data.understanding.boxes import BOX_FIELDS, JointFit
from uniflow.data.understanding.coco_files import CocoFile, CocoImage, decode_masks


class COCODetection(ImageDataModule):
    """COCO, or a data set in its form: images with boxes, classes and masks.

    A batch is {"image": uint8 (B, 3, size, size), "boxes": a list of float32 (n, 4), left, top, right, bottom in
    pixels, "box_labels": int64 (n,) from 0, "box_crowd": int64 (n,)}, and with `masks` "box_masks": bool
    (n, size, size). In validation and test there are also "name", "image_id", and with `resize: pad` "image_scale" and
    "box_area" (see `DetectionHead`). Images without boxes are kept.

    The test images are COCO's validation images, whose annotations are public; validation takes a share of the training
    images, chosen by a hash of their names.

    An image file that is missing, unreadable, or of another size than the annotations say is skipped and named in
    `skipped_images.log`. See `CocoFile` for broken annotations.

    Attributes:
        category_ids: COCO's number of each class, in the order of `class_names`.
    """

    list_fields: ClassVar[frozenset[str]] = frozenset({"boxes", "box_masks", *BOX_FIELDS})
    size: int

    def __init__(
        self,
        root: str,
        size: int = 1024,
        *,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        test_images: str = "val2017",
        test_annotations: str = "annotations/instances_val2017.json",
        val_fraction: float = 0.02,
        resize: Literal["pad", "crop"] = "pad",
        short_side: int | None = None,
        jitter: tuple[float, float] = (1.0, 1.0),
        scale: tuple[float, float] = (0.3, 1.0),
        flip: float = 0.5,
        masks: bool = False,
        **loading: Any,
    ) -> None:
        """
        Args:
            root: the folder that all other names are relative to.
            size: side of the square images in a batch, in pixels; a multiple of the encoder's patch size.
            train_images: folder of training images.
            train_annotations: their annotations.
            test_images: folder of test images.
            test_annotations: their annotations.
            val_fraction: share of the training images used for validation, in (0, 1).
            resize: "pad" keeps all of an image and its aspect ratio (see `JointFit`), as COCO is judged; "crop" takes a
                random part in training and the central square in evaluation.
            short_side: with "pad", the short side of the resized image; null: as large as fits.
            jitter: with "pad", smallest and largest random factor on the size in training; ViTDet has 0.1 and 2.
            scale: with "crop", smallest and largest share of a training image's area.
            flip: probability of a horizontal flip in training.
            masks: whether samples have masks, for `MaskRCNNHead`.
            loading: the arguments of `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a file or folder is missing or broken, or training
                and test differ in their classes.
        """
        super().__init__(**loading)
        if not 0 < val_fraction < 1:
            raise ValueError(f"COCODetection: val_fraction must be in (0, 1), not {val_fraction}")
        if resize not in ("pad", "crop"):
            raise ValueError(f"COCODetection: resize must be pad or crop, not {resize!r}")
        self.root, self.size, self.val_fraction, self.masks = Path(root).expanduser(), size, val_fraction, masks
        self.resize, self.short_side = resize, short_side
        self.folders = {"train": self.root / train_images, "test": self.root / test_images}
        self.annotations = {"train": self.root / train_annotations, "test": self.root / test_annotations}
        self.fit = JointFit(size, short_side, jitter, flip)
        self.random_crop = JointRandomCrop(RandomResizedCrop(size, scale, (1.0, 1.0), flip), BOX_FIELDS)
        self.center_crop = JointCenterCrop(CenterCrop(size), BOX_FIELDS)
        self._files: dict[str, CocoFile] = {}

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "resize": self.resize, "short_side": self.short_side}

    @property
    def category_ids(self) -> list[int]:
        return self._file("train").category_ids

    def make_dataset(self, split: str) -> COCOImages:
        """The images of `split`."""
        source = "test" if split == "test" else "train"
        file = self._file(source)
        self.class_names = self._file("train").class_names
        if file.category_ids != self.category_ids or file.class_names != self.class_names:
            raise DataError(
                f"{file.path} has other categories than {self.annotations['train']}: "
                f"{len(file.category_ids)} and {len(self.category_ids)}, or in another order"
            )
        images = file.images
        if source == "train":
            images = [i for i in images if (name_to_unit(i.name) < self.val_fraction) == (split == "val")]
        if not images:
            hint = f"; raise val_fraction (it is {self.val_fraction})" if split == "val" else ""
            raise DataError(f"COCODetection: {file.path} has no images for the {split} split{hint}")
        if not self.folders[source].is_dir():
            raise DataError(f"COCODetection: there is no folder {self.folders[source]}")
        return COCOImages(self, split, self.folders[source], images)

    def results(self, batch: dict[str, Any], found: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
        """Detections in COCO's result format, for its evaluation server.

        Args:
            batch: of validation or test, with `resize: pad`.
            found: what `DetectionHead.detect` found on it.

        Returns:
            One dict for each detection: "image_id", "category_id" in COCO's numbers, "bbox" (left, top, width, height
            in pixels of the file) and "score".

        Raises:
            ValueError: if the batch has no "image_scale".
        """
        if "image_scale" not in batch:
            raise ValueError("COCODetection.results needs images that were not cropped: resize: pad")
        results = []
        for number, scale, image in zip(batch["image_id"].tolist(), batch["image_scale"].tolist(), found, strict=True):
            columns = (image["boxes"] / scale, image["labels"], image["scores"])
            for box, label, score in zip(*(column.tolist() for column in columns), strict=True):
                left, top, right, bottom = box
                results.append(
                    {
                        "image_id": number,
                        "category_id": self.category_ids[label],
                        "bbox": [left, top, right - left, bottom - top],
                        "score": score,
                    }
                )
        return results

    def _file(self, source: str) -> CocoFile:
        if source not in self._files:
            self._files[source] = CocoFile(self.annotations[source], self.masks)
        return self._files[source]


class COCOImages(Dataset):
    """The images of one split; None for a file that cannot be used."""

    def __init__(self, module: COCODetection, split: str, folder: Path, images: Sequence[CocoImage]) -> None:
        self.split, self.folder, self.images = split, folder, images
        self.seed, self.skip_log, self.masks, self.resize = module.seed, module.skip_log, module.masks, module.resize
        self.fit, self.random_crop, self.center_crop = module.fit, module.random_crop, module.center_crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        image = self.images[int(index)]
        path = os.path.join(self.folder, image.name)
        try:
            pixels = read_image(path, image.name)
            sample = self._sample(image, pixels)
        except (ImageReadError, DataError) as error:
            self.skip_log.add(self.split, path, error.reason if isinstance(error, ImageReadError) else str(error))
            return None
        sample = self._resized(sample, index)
        number = sample.pop("box_number")
        if "box_masks" in sample:
            sample["box_masks"] = sample["box_masks"][number].bool()
        if self.split == "train":
            return {name: value for name, value in sample.items() if name not in ("image_scale", "box_area")}
        return sample | {"name": printable(image.name), "image_id": image.id}

    def _sample(self, image: CocoImage, pixels: Tensor) -> dict[str, Any]:
        if tuple(pixels.shape[-2:]) != image.size:
            height, width = pixels.shape[-2:]
            raise DataError(f"{height} x {width} pixels, but {image.size[0]} x {image.size[1]} in the annotations")
        sample: dict[str, Any] = {
            "image": pixels,
            "boxes": torch.from_numpy(image.boxes),
            "box_labels": torch.from_numpy(image.labels),
            "box_crowd": torch.from_numpy(image.crowd),
            "box_number": torch.arange(len(image.boxes)),
        }
        if self.resize == "pad":  # a part of an object has another area
            sample["box_area"] = torch.from_numpy(image.area)
        return sample | ({"box_masks": Mask(decode_masks(image))} if self.masks else {})

    def _resized(self, sample: dict[str, Any], index: int) -> dict[str, Any]:
        generator = sample_generator(self.seed, index) if self.split == "train" else None
        if self.resize == "pad":
            return self.fit(sample, generator)
        return self.center_crop(sample) if generator is None else self.random_crop(sample, generator)
