"""A folder of images, with or without class subfolders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from uniflow.core.files import printable
from uniflow.data.images.buckets import read_sizes
from uniflow.data.images.captions import CAPTION, CaptionSource
from uniflow.data.images.crops import CroppedImages
from uniflow.data.images.listing import list_images as list_images  # other modules import it from here
from uniflow.data.images.listing_cache import list_files
from uniflow.data.images.names import Listing, Names
from uniflow.data.images.names import name_to_unit as name_to_unit
from uniflow.data.images.reading import EXTENSIONS, ImageReadError, read_image
from uniflow.data.sampler import sample_generator


class ImageFolder(CroppedImages):
    """A folder of images; a batch is {"image": uint8 (B, 3, size, size)}, with classes "label": int64 (B,), and with
    `caption` "caption", a list of B texts.
    In validation and test there is also "name": each file's path relative to the folder, with "/".

    The folders `train`, `val` and `test` of `root` are used if they exist. A missing split is taken from the training
    images by a hash of each file's name, so that a file stays in its split when others are added or removed. The three
    splits never share a file, whatever it is called: an image of the test folder is not used for validation, and an
    image of either is not trained on, also if folders lie in each other or are reached by links.

    Images in subfolders one level deep, two or more of them, get the subfolder's index in the sorted list as label.

    A subclass whose samples are other files overrides `walk`, `noun` and `extensions`, and makes its own datasets.
    """

    noun: ClassVar[str] = "image"
    extensions: ClassVar[frozenset[str]] = EXTENSIONS
    field_hints: ClassVar[dict[str, str]] = {
        CAPTION: "set data.caption to what holds the captions beside the images: txt, or json:KEY"
    }

    def __init__(
        self,
        root: str,
        size: int = 224,
        *,
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        labels: bool | None = None,
        caption: str | None = None,
        bucket_by: Literal["random", "aspect"] = "random",
        cache_listing: bool = True,
        **settings: Any,
    ) -> None:
        """
        Args:
            root: the folder.
            size: side of the square images in a batch, in pixels.
            val: folder of validation images, relative to `root` or absolute; by default `root/val`, if it exists and
                is not `test`.
            test: folder of test images; by default `root/test`, if it exists.
            val_fraction: share of the training images used for validation if there is no such folder.
            test_fraction: share of the training images used for testing if there is no such folder.
            labels: whether first-level subfolders are classes; by default they are if all images lie in them.
            caption: where the caption of `x.jpg` is: "txt", the file `x.txt` beside it, or "json:KEY", the text under
                KEY of `x.json`; by default there are no captions. An image without one, or with one that is empty or
                not UTF-8, is skipped and named in the log of skipped images.
            bucket_by: "random" draws one of `buckets` for each batch; "aspect" assigns each image to the buckets whose
                aspect ratio is nearest to its own, for which the files' headers are read when training begins.
            cache_listing: keep the names of a folder with many files in the user's cache folder, and take them from
                there as long as the times of all its folders are what they were; False: read the folder each time.
            settings: the arguments of `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
        """
        super().__init__(size=size, **settings)
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be in [0, 1), not {fraction}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(f"{type(self).__name__}: val_fraction and test_fraction leave nothing to train on")
        if bucket_by == "aspect" and self.buckets is None:
            raise ValueError("ImageFolder: bucket_by: aspect needs buckets, the sizes of training batches")
        self.root = Path(root).expanduser()
        self.given = {"val": val, "test": test}
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.labels, self.bucket_by = labels, bucket_by
        self.caption = None if caption is None else CaptionSource.parse(caption, type(self).__name__)
        self.cache_listing = cache_listing
        self._listings: dict[str, tuple[Path, Listing]] | None = None
        self._aspects: np.ndarray | None = None

    def make_dataset(self, split: str) -> ImageFiles:
        """The images of `split`."""
        return self._images(split, training=split == "train")

    def make_plain_train_dataset(self) -> ImageFiles:
        return self._images("train", training=False)

    def _images(self, split: str, training: bool) -> ImageFiles:
        return ImageFiles(self, split, *self.split_members(split), training)

    def split_members(self, split: str) -> tuple[Path, Names, np.ndarray | None]:
        """Folder, relative names and class numbers of a split's files; None without classes.

        Raises:
            ValueError: if there are none, or one has a class that the training files do not have.
        """
        folder, files = self.split_listings()[split]
        if not len(files):
            raise ValueError(self._empty(split, folder))
        if self.class_names is None:
            return folder, files.names, None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        targets = np.array([numbers.get(_class(holder), -1) for holder in files.folders])[files.holders]
        for i in np.flatnonzero(np.array([holder == "" for holder in files.folders])[files.holders]).tolist():
            targets[i] = numbers.get(_class(os.fsdecode(files.names[i])), -1)
        if (unknown := np.flatnonzero(targets < 0)).size:
            name = min(_class(name) for name in files.names.take(unknown).strings())
            raise ValueError(f"{folder} has the class {name!r}, which the training {self.noun}s do not have")
        return folder, files.names, targets

    def epoch_batches(self) -> int:
        """Batches of a whole epoch, for each process."""
        aspects = self.image_aspects()
        if aspects is None:
            return super().epoch_batches()
        return int((np.bincount(aspects) // self.global_batch).sum())

    def batches_left(self, samples: int) -> int:
        """Batches of an epoch, for each process, after the first `samples` samples of all processes."""
        if self.image_aspects() is None:
            return super().batches_left(samples)
        return max(0, self.epoch_batches() - -(-samples // self.global_batch))

    def image_aspects(self) -> np.ndarray | None:
        if self.buckets is None or self.bucket_by != "aspect":
            return None
        if self._aspects is None:
            folder, names = self.split_files()["train"]
            self._aspects = self.buckets.nearest_aspect(read_sizes(folder, names, self.max_pixels))
        return self._aspects

    def _settings(self) -> dict[str, Any]:
        buckets = None
        if self.buckets is not None and self.bucket_by == "aspect":
            buckets = f"by aspect {self.buckets.sizes}, {self.global_batch} images a step,"
        return {**super()._settings(), "buckets": buckets}

    def _exact_only(self) -> tuple[str, ...]:
        return (*super()._exact_only(), "buckets")

    def walk(self, folder: Path) -> Listing:
        """What `folder` holds."""
        return list_files(folder, self.extensions, self.cache_listing)

    def split_files(self) -> dict[str, tuple[Path, list[str]]]:
        """Folder and sorted relative names of the files of each split; sets `class_names`."""
        return {split: (folder, files.names.strings()) for split, (folder, files) in self.split_listings().items()}

    def split_listings(self) -> dict[str, tuple[Path, Listing]]:
        """Folder and files of each split; sets `class_names`."""
        if self._listings is not None:
            return self._listings
        if not self.root.is_dir():
            raise ValueError(f"{type(self).__name__}: {self.root} is not a folder; give a folder of {self.noun}s")
        folders = self._folders()
        splits = self._read_folders(folders)
        train, files = splits.pop("train")
        self.class_names = self._classes(files)
        fractions = {s: 0.0 if s in folders else fraction for s, fraction in self.fractions.items()}
        is_test = files.places < fractions["test"]
        is_val = ~is_test & (files.places < fractions["test"] + fractions["val"])
        for split, members in (("train", ~is_test & ~is_val), ("val", is_val), ("test", is_test)):
            if split not in splits:
                splits[split] = train, files.take(np.flatnonzero(members))
        self._listings = splits
        return splits

    def _read_folders(self, folders: dict[str, Path]) -> dict[str, tuple[Path, Listing]]:
        """The folder and files of `folders` and of "train", each file in the first that has it."""
        train = self.root / "train" if (self.root / "train").is_dir() else self.root
        splits: dict[str, tuple[Path, Listing]] = {}
        earlier: list[Listing] = []
        for split, folder in (*folders.items(), ("train", train)):
            found = self.walk(folder)
            splits[split] = folder, found.without(earlier)
            if len(found) and not len(splits[split][1]):
                others = " or ".join(str(other) for other in folders.values() if other != folder)
                raise ValueError(
                    f"{type(self).__name__}: every {self.noun} of {folder} ({split}) is held out, "
                    f"because it is in {others}"
                )
            earlier.append(found)
        return splits

    def _folders(self) -> dict[str, Path]:
        """The validation and test folders that exist."""
        folders: dict[str, Path] = {}
        for split in ("test", "val"):  # a folder that is given as the test set is not used for validation
            given = self.given[split]
            folder = self.root / Path(given or split).expanduser()
            if given and not folder.is_dir():
                raise ValueError(f"{type(self).__name__}: the {split} folder {folder} does not exist")
            if folder.is_dir() and (given or folder.resolve() not in {f.resolve() for f in folders.values()}):
                folders[split] = folder
        if len(folders) == 2 and folders["val"].resolve() == folders["test"].resolve():
            raise ValueError(f"{type(self).__name__}: {folders['val']} cannot be both the validation and the test set")
        return folders

    def _classes(self, files: Listing) -> list[str] | None:
        holders = files.used_folders()
        classes = sorted({_class(holder) for holder in holders if holder})
        if self.labels and "" in holders:
            raise ValueError(
                f"{type(self).__name__}: labels is true, but {self.root} has {self.noun}s outside of subfolders"
            )
        looks_like_classes = len(classes) > 1 and all(holder.count("/") == 1 for holder in holders)
        return classes if (looks_like_classes if self.labels is None else self.labels) else None

    def _empty(self, split: str, folder: Path) -> str:
        has_images = any(len(files) for _, files in self.split_listings().values())
        if has_images and split in self.fractions and split not in self._folders():
            return (
                f"{type(self).__name__}: no {self.noun} of {folder} falls into the {split} split; "
                f"raise {split}_fraction (it is {self.fractions[split]}) or set {split} to a folder"
            )
        known = " ".join(sorted(self.extensions))
        return (
            f"{type(self).__name__}: {folder} holds no {self.noun}s for the {split} split (known extensions: {known})"
        )


class ImageFiles(Dataset):
    """The cropped images of one split; None for a file that cannot be read."""

    def __init__(
        self,
        module: ImageFolder,
        split: str,
        folder: Path,
        names: Names,
        targets: np.ndarray | None,
        training: bool,
    ) -> None:
        self.folder, self.split, self.training = folder, split, training
        self.names, self.targets = names, targets
        self.seed, self.skip_log, self.caption = module.seed, module.skip_log, module.caption
        self.train_crop, self.eval_crop, self.max_pixels = module.train_crop, module.eval_crop, module.max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, object] | None:
        name = os.fsdecode(self.names[int(index)])
        path = os.path.join(self.folder, name)  # several times faster than pathlib
        try:
            told = {} if self.caption is None else {CAPTION: self.caption.beside(path, name)}
            sample: dict[str, object] = {"image": self.read(path, name, index), **told}
        except ImageReadError as error:
            self.skip_log.add(self.split, path, error.reason)
            return None
        if self.targets is not None:
            sample["label"] = int(self.targets[int(index)])
        return sample if self.training else sample | {"name": printable(name)}

    def read(self, path: str, name: str, index: int) -> Tensor:
        """The crop of a file, (3, H, W).

        Raises:
            ImageReadError: if it cannot be read.
        """
        if not self.training:
            return self.eval_crop(read_image(path, name, max_pixels=self.max_pixels))
        generator, size = sample_generator(self.seed, index), getattr(index, "size", None)
        return self.train_crop.read(path, name, generator, size, self.max_pixels)


def _class(name: str) -> str:
    return printable(name.split("/", 1)[0])
