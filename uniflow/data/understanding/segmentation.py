"""Images with masks of classes: ADE20K in its official layout, and plain folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniflow.core.numbers import Int2
from uniflow.data.errors import DataError
from uniflow.data.images.reading import ImageReadError
from uniflow.data.understanding.pairs import Pair, PairedImages, TargetReader, folder_pairs, split_by_folder

IGNORE = 255  # label of pixels without a class, in all masks that leave this file
ADE20K_CLASSES = 150


class MaskReader(TargetReader):
    """Masks as labels, uint8 (H, W): 0 to `num_classes` - 1, or 255 for pixels without a class.

    Args:
        num_classes: number of classes, at most 255.
        reduce_labels: whether the file's 0 means "no class" and its 1 is class 0. It is done here, once, and nowhere
            else in the package.
        palette: colours of the classes; None for files that hold the labels themselves.
        max_pixels: most pixels of a file.
    """

    def __init__(self, num_classes: int, reduce_labels: bool, palette: np.ndarray | None, max_pixels: int) -> None:
        super().__init__(max_pixels)
        self.num_classes, self.reduce_labels = num_classes, reduce_labels
        self.codes = None if palette is None else _codes(palette)

    def values(self, path: str, mode: str, values: np.ndarray) -> np.ndarray:
        if values.ndim == 3:
            labels = self._from_colors(path, mode, values)
        elif mode not in ("P", "L", "1", "I", "I;16"):
            raise ImageReadError(path, f"a mask must be a PNG of mode P or L, not {mode}")
        else:
            labels = values.astype(np.int64)
        unknown = labels == IGNORE
        if self.reduce_labels:
            unknown |= labels == 0
            labels = labels - 1
        wrong = ~unknown & ((labels < 0) | (labels >= self.num_classes))
        if wrong.any():
            shift = int(self.reduce_labels)
            known = f"{shift} to {self.num_classes - 1 + shift}, and {'0 or ' if shift else ''}{IGNORE} for no class"
            raise ImageReadError(path, f"label {labels[wrong][0] + shift} is out of range: labels are {known}")
        return np.where(unknown, IGNORE, labels).astype(np.uint8)

    def _from_colors(self, path: str, mode: str, values: np.ndarray) -> np.ndarray:
        if self.codes is None:
            raise DataError(
                f"{path} is coloured ({mode}), not a mask of labels: give the colour of each class in `palette`, or "
                "save masks as PNG of mode P or L"
            )
        codes = _codes(values[..., :3])
        order = np.argsort(self.codes)
        labels = order[np.searchsorted(self.codes, codes, sorter=order).clip(max=len(order) - 1)]
        wrong = self.codes[labels] != codes
        if wrong.any():
            raise ImageReadError(path, f"the colour {values[..., :3][wrong][0].tolist()} is not in the palette")
        return labels


class MaskFolder(PairedImages):
    """A folder of images and masks; a batch is {"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W)}.

    `root/images` holds the images and `root/masks` for each a PNG of the same name, in the same subfolders. The
    subfolders `train`, `val` and `test`, where they are there, are the splits; otherwise splits are taken by a hash of
    the names. Masks hold labels (PNG of mode P or L) or, with a `palette`, colours. 255 is "no class".
    """

    field = "mask"

    def __init__(
        self,
        root: str,
        num_classes: Int2,
        reduce_labels: bool = False,
        palette: Sequence[tuple[int, int, int]] | None = None,
        names: Sequence[str] | None = None,
        test_fraction: float = 0.05,
        **settings: Any,
    ) -> None:
        """
        Args:
            root: the folder.
            num_classes: classes in the masks, at most 255; a background is one of them, unless it is 0 and
                `reduce_labels` makes it "no class".
            reduce_labels: whether 0 means "no class" and 1 is the first class.
            palette: red, green and blue (0 to 255) of each value, for masks in colours: the first colour is 0.
            names: of the classes, in order.
            test_fraction: share of the training images held out for the test, where there is no split for it.
            settings: the arguments of `PairedImages`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(root, **settings)
        if not 2 <= num_classes <= IGNORE:
            raise ValueError(f"MaskFolder: num_classes must be 2 to {IGNORE}, not {num_classes}")
        if not 0 <= test_fraction < 1:
            raise ValueError(f"MaskFolder: test_fraction must be in [0, 1), not {test_fraction}")
        if names is not None and len(names) != num_classes:
            raise ValueError(f"MaskFolder: there are {len(names)} names for {num_classes} classes")
        self.palette = None if palette is None else np.array(palette, dtype=np.int64).reshape(-1, 3)
        if self.palette is not None and len(self.palette) != num_classes + reduce_labels:
            raise ValueError(
                f"MaskFolder: palette has {len(self.palette)} colours, must have {num_classes + reduce_labels}"
            )
        self.num_classes, self.reduce_labels, self.test_fraction = num_classes, reduce_labels, test_fraction
        self.mask_names = list(names) if names is not None else [str(number) for number in range(num_classes)]

    def find_pairs(self) -> dict[str, list[Pair]]:
        return split_by_folder(folder_pairs(self.root / "images", self.root / "masks"), self.test_fraction)

    def reader(self) -> MaskReader:
        return MaskReader(self.num_classes, self.reduce_labels, self.palette, self.max_pixels)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "reduce_labels": self.reduce_labels}


class ADE20K(PairedImages):
    """ADE20K's scene parsing benchmark (`ADEChallengeData2016`) with 150 classes.

    `root` holds `images/training`, `images/validation`, `annotations/training` and `annotations/validation`. In the
    files 0 is "other" and 1 to 150 are the classes: "mask" has 255 for the first and 0 to 149 for the others. The
    official validation images are the test; validation uses a share of the training images, so that the best checkpoint
    is not chosen by the test. `root/objectInfo150.txt`, if it is there, names the classes.
    """

    field = "mask"

    def __init__(self, root: str, **settings: Any) -> None:
        """
        Args:
            root: the folder.
            settings: the arguments of `PairedImages`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(root, **settings)
        self.mask_names = _ade20k_names(self.root / "objectInfo150.txt")

    def find_pairs(self) -> dict[str, list[Pair]]:
        folders = {"train": "training", "test": "validation"}
        return {
            split: folder_pairs(self.root / "images" / name, self.root / "annotations" / name)
            for split, name in folders.items()
        }

    def reader(self) -> MaskReader:
        return MaskReader(ADE20K_CLASSES, True, None, self.max_pixels)


def _codes(colors: np.ndarray) -> np.ndarray:
    """One number for each colour (..., 3)."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def _ade20k_names(path: Path) -> list[str]:
    """The first name of each class, from the last column of the official list; numbers without it."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        names = [line.rsplit("\t", 1)[-1].split(",")[0].strip() for line in lines if line.strip()]
        if len(names) == ADE20K_CLASSES:
            return names
        raise ValueError(f"{path} must name {ADE20K_CLASSES} classes after its first line, it has {len(names)}")
    return [str(number) for number in range(ADE20K_CLASSES)]
