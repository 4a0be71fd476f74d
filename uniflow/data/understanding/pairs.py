"""Images and, for each, a file with a value for every pixel: what masks and depth maps share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from uniflow.core.errors import one_line
from uniflow.core.files import open_regular, printable
from uniflow.data.base import SPLITS
from uniflow.data.errors import DataError
from uniflow.data.images.crops import CroppedImages
from uniflow.data.images.folder import name_to_unit
from uniflow.data.images.listing import list_images
from uniflow.data.images.reading import ImageReadError, open_image, read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.joint import JointCenterCrop, JointRandomCrop
from uniflow.data.sampler import sample_generator


class Pair(NamedTuple):
    """An image, and the file that says something about each of its pixels.

    Attributes:
        name: of the image, in tables and logs.
        image: path of the image.
        target: path of the mask or depth map; it may not be there.
    """

    name: str
    image: str
    target: str


class TargetReader(ABC):
    """Reads masks or depth maps. It is sent to worker processes.

    Args:
        max_pixels: most pixels of a file.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels

    def __call__(self, path: str) -> Tensor:
        """The values (H, W) of a file.

        Raises:
            ImageReadError: for a broken file.
            DataError: for a kind of file that this data module does not take at all.
        """
        try:
            with open_regular(path) as file, open_image(file, path, self.max_pixels) as image:
                mode, values = image.mode, np.array(image)
        except ImageReadError:
            raise
        except FileNotFoundError as error:
            raise ImageReadError(path, "there is no such file") from error
        except Exception as error:  # broken files make PIL's decoders raise almost anything
            raise ImageReadError(path, f"{type(error).__name__}: {one_line(error)}") from error
        return torch.from_numpy(self.values(path, mode, values))

    @abstractmethod
    def values(self, path: str, mode: str, values: np.ndarray) -> np.ndarray:
        """The values (H, W) that the pixels of a file of PIL's mode `mode` stand for; raises as `__call__`."""


class PairedImages(CroppedImages):
    """Base class of data modules of images with masks or depth maps.

    Training batches are random crops, with the target's pixels nearest to those of the image. A broken sample is one
    whose image or target cannot be read or is missing, whose target has another size than the image, or values out of
    range. It is counted, and named with its reason in `skipped_images.log` of the run.

    Attributes:
        field: of the target in batches.
    """

    field: ClassVar[str]

    def __init__(
        self,
        root: str,
        evaluate: Literal["whole", "crop"] = "whole",
        broken: Literal["skip", "refuse"] = "skip",
        val_fraction: float = 0.05,
        **settings: Any,
    ) -> None:
        """
        Args:
            root: the folder.
            evaluate: "whole": validation and test see whole images, one at a time, with the short side resized to
                `size`, and are judged at the target's own size; "crop": the central square, in batches.
            broken: "skip" leaves broken samples out, "refuse" ends the run at the first one.
            val_fraction: share of the training images that validation uses, by a hash of their names, where there is no
                split for it.
            settings: the arguments of `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(**settings)
        for name, value, known in (("evaluate", evaluate, ("whole", "crop")), ("broken", broken, ("skip", "refuse"))):
            if value not in known:
                raise ValueError(f"{type(self).__name__}: {name} must be {known[0]} or {known[1]}, not {value!r}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"{type(self).__name__}: val_fraction must be in [0, 1), not {val_fraction}")
        self.root = Path(root).expanduser()
        self.evaluate, self.broken, self.val_fraction = evaluate, broken, val_fraction
        self._pairs: dict[str, list[Pair]] | None = None

    @abstractmethod
    def find_pairs(self) -> dict[str, list[Pair]]:
        """The pairs by split; a split that is missing is taken from "train"."""

    @abstractmethod
    def reader(self) -> TargetReader:
        """What reads the targets."""

    @property
    def evaluation_batch_size(self) -> int:
        return 1 if self.evaluate == "whole" else self.batch_size  # whole images differ in size

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "evaluate": self.evaluate}

    def pairs(self) -> dict[str, list[Pair]]:
        """The pairs of all splits.

        Raises:
            ValueError: if a folder or list is missing, or a split is empty.
        """
        if self._pairs is None:
            found = self.find_pairs()
            if "val" not in found:
                held_out = [name_to_unit(pair.name) < self.val_fraction for pair in found["train"]]
                found["val"] = [pair for pair, out in zip(found["train"], held_out, strict=True) if out]
                found["train"] = [pair for pair, out in zip(found["train"], held_out, strict=True) if not out]
            for split in SPLITS:
                if not found.get(split):
                    hint = f"; raise val_fraction (it is {self.val_fraction})" if split == "val" else ""
                    raise ValueError(f"{type(self).__name__}: {self.root} has no images for the {split} split{hint}")
            self._pairs = found
        return self._pairs

    def make_dataset(self, split: str) -> PairDataset:
        return PairDataset(self, split, self.pairs()[split])


class PairDataset(Dataset):
    """The cropped pairs of one split; None for a broken one."""

    def __init__(self, module: PairedImages, split: str, pairs: list[Pair]) -> None:
        self.split, self.field, self.read = split, module.field, module.reader()
        # Arrays of bytes, because a list of strings is copied into every worker page by page.
        self.files = np.array([[os.fsencode(text) for text in pair] for pair in pairs])
        self.seed, self.skip_log, self.max_pixels = module.seed, module.skip_log, module.max_pixels
        self.refuse, self.size = module.broken == "refuse", module.size
        self.train_crop, self.eval_crop = JointRandomCrop(module.train_crop), JointCenterCrop(module.eval_crop)
        self.whole = module.evaluate == "whole"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        name, path, target = (os.fsdecode(text) for text in self.files[int(index)])
        try:
            sample: dict[str, Any] = {
                "image": read_image(path, max_pixels=self.max_pixels),
                self.field: self.read(target),
            }
            sizes = [tuple(value.shape[-2:]) for value in sample.values()]
            if sizes[0] != sizes[1]:
                raise ImageReadError(
                    target, f"{sizes[1][0]} x {sizes[1][1]} pixels, its image {path} has {sizes[0][0]} x {sizes[0][1]}"
                )
            if self.whole and self.split != "train":
                sample["image"] = resize_short_side(sample["image"], self.size, path)
        except ImageReadError as error:
            if self.refuse:
                raise DataError(f"{error}; repair or remove it, or set broken: skip") from error
            self.skip_log.add(self.split, error.name, error.reason)
            return None
        if self.split == "train":
            return self.train_crop(sample, sample_generator(self.seed, index), getattr(index, "size", None))
        if not self.whole:
            sample = self.eval_crop(sample)
        return sample | {"name": printable(name)}


def folder_pairs(images: Path, targets: Path, suffix: str = ".png") -> list[Pair]:
    """The images below a folder, each with the file of the same stem below another.

    Raises:
        ValueError: if a folder is missing or cannot be read.
    """
    if not targets.is_dir():
        raise ValueError(f"there is no folder {printable(str(targets))}")
    return [
        Pair(name, os.path.join(images, name), os.path.join(targets, os.path.splitext(name)[0] + suffix))
        for name in list_images(images)
    ]


def split_by_folder(pairs: list[Pair], test_fraction: float) -> dict[str, list[Pair]]:
    """Pairs by the first folder in their names, `train`, `val` or `test`; otherwise by a hash of their names.

    Without folders, and without one for the test, a share of `test_fraction` is held out for it.

    Raises:
        ValueError: if some images are in such folders and others are not.
    """
    splits: dict[str, list[Pair]] = {}
    for pair in pairs:
        first = pair.name.split("/", 1)[0] if "/" in pair.name else ""
        splits.setdefault(first if first in SPLITS else "", []).append(pair)
    loose = splits.pop("", [])
    if loose and splits:
        raise ValueError(f"{loose[0].name} is in none of the folders train, val and test that other images are in")
    found = splits if splits else {"train": loose}
    if "test" not in found:
        found["test"] = [pair for pair in found.get("train", []) if name_to_unit(f"test {pair.name}") < test_fraction]
        held_out = {pair.name for pair in found["test"]}
        found["train"] = [pair for pair in found.get("train", []) if pair.name not in held_out]
    return found
