"""Images with depth maps: NYUv2 as published by BTS, and plain folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from uniflow.core.files import printable
from uniflow.data.images.reading import SIXTEEN_BIT_GREY, ImageReadError
from uniflow.data.understanding.pairs import Pair, PairedImages, TargetReader, folder_pairs, split_by_folder

FARTHEST = 200.0  # metres; a median beyond it is a wrong unit


class DepthReader(TargetReader):
    """16-bit PNG as depths in metres, float32 (H, W); 0 is not measured.

    Args:
        depth_scale: value that stands for one metre.
        max_pixels: most pixels of a file.
    """

    def __init__(self, depth_scale: float, max_pixels: int) -> None:
        super().__init__(max_pixels)
        self.depth_scale = depth_scale

    def values(self, path: str, mode: str, values: np.ndarray) -> np.ndarray:
        if mode not in (*SIXTEEN_BIT_GREY, "I"):
            raise ImageReadError(path, f"a depth map must be a 16-bit grey PNG, this one has mode {mode}")
        depth = values.astype(np.float32) / np.float32(self.depth_scale)
        measured = depth[depth > 0]
        if not len(measured):
            raise ImageReadError(path, "no pixel is measured: all are 0")
        if (median := float(np.median(measured))) > FARTHEST:
            raise ImageReadError(
                path, f"half of it is beyond {median:.0f} m: is depth_scale {self.depth_scale:g} right?"
            )
        return depth


class DepthImages(PairedImages):
    """Base class of data modules of images with depth; a batch is {"image": uint8 (B, 3, H, W), "depth": float32
    (B, H, W) in metres, 0 where it is not measured}."""

    field = "depth"

    def __init__(self, root: str, depth_scale: float = 1000.0, **settings: Any) -> None:
        """
        Args:
            root: the folder.
            depth_scale: value in the files that stands for one metre: 1000 for millimetres.
            settings: the arguments of `PairedImages`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(root, **settings)
        if not 0 < depth_scale < float("inf"):
            raise ValueError(f"{type(self).__name__}: depth_scale must be a finite number > 0, not {depth_scale}")
        self.depth_scale = depth_scale

    def reader(self) -> DepthReader:
        return DepthReader(self.depth_scale, self.max_pixels)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "depth_scale": self.depth_scale}


class DepthFolder(DepthImages):
    """A folder of images and depth maps: `root/images`, and in `root/depth` for each a 16-bit PNG of the same name.

    The subfolders `train`, `val` and `test`, where they are there, are the splits; otherwise splits are taken by a hash
    of the names.
    """

    def __init__(self, root: str, test_fraction: float = 0.05, **settings: Any) -> None:
        """
        Args:
            root: the folder.
            test_fraction: share of the training images held out for the test, where there is no split for it.
            settings: the arguments of `DepthImages`, `PairedImages`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(root, **settings)
        if not 0 <= test_fraction < 1:
            raise ValueError(f"DepthFolder: test_fraction must be in [0, 1), not {test_fraction}")
        self.test_fraction = test_fraction

    def find_pairs(self) -> dict[str, list[Pair]]:
        return split_by_folder(folder_pairs(self.root / "images", self.root / "depth"), self.test_fraction)


class NYUv2(DepthImages):
    """NYUv2 in the layout of BTS (arXiv 1907.10326), which AdaBins and DINOv2 use: JPEG images, 16-bit PNG depth in
    millimetres, and a list for training and test whose lines are `IMAGE DEPTH FOCAL_LENGTH`.

    Paths in the lists are relative to `train_folder` and `test_folder`, also where they begin with a slash. Validation
    uses a share of the training images, so that the best checkpoint is not chosen by the test.
    """

    def __init__(
        self,
        root: str,
        train_list: str = "nyudepthv2_train_files_with_gt.txt",
        test_list: str = "nyudepthv2_test_files_with_gt.txt",
        train_folder: str = "sync",
        test_folder: str = "official_splits/test",
        **settings: Any,
    ) -> None:
        """
        Args:
            root: the folder.
            train_list: list of training images, relative to `root`.
            test_list: list of test images, relative to `root`.
            train_folder: where the training images are, relative to `root`.
            test_folder: where the test images are, relative to `root`.
            settings: the arguments of `DepthImages`, `PairedImages`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a list is missing or a split is empty.
        """
        super().__init__(root, **settings)
        self.lists = {"train": (train_list, train_folder), "test": (test_list, test_folder)}

    def find_pairs(self) -> dict[str, list[Pair]]:
        return {
            split: _listed(self.root / Path(lines).expanduser(), self.root / folder)
            for split, (lines, folder) in self.lists.items()
        }


def _listed(path: Path, folder: Path) -> list[Pair]:
    if not path.is_file():
        raise ValueError(f"there is no list {printable(str(path))} of images and depth maps")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if len(words) == 1:
            raise ValueError(f"{printable(str(path))}, line {number}: must be IMAGE DEPTH, got {printable(line)!r}")
        if words:
            image, depth = (word.lstrip("/") for word in words[:2])
            pairs.append(Pair(image, os.path.join(folder, image), os.path.join(folder, depth)))
    return pairs
