"""A folder of clips: video files and folders of frames, with or without class subfolders."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from uniflow.data.images.folder import ImageFiles, ImageFolder
from uniflow.data.images.listing_cache import list_files
from uniflow.data.images.names import Listing
from uniflow.data.images.reading import EXTENSIONS as IMAGE_EXTENSIONS
from uniflow.data.sampler import sample_generator
from uniflow.data.video.cutting import ClipCut, collate_clips
from uniflow.data.video.files import EXTENSIONS
from uniflow.data.video.reading import Backend, import_backend


class ClipFolder(ImageFolder):
    """A folder of video files and of folders of frames; a sample is a clip, and a batch holds all frames of its clips:
    {"image": uint8 (B T, 3, size, size), "frames": T}, clip after clip, so that whatever works on images works on them.
    With classes there is "label", with `caption` "caption", in validation and test "name", each for every frame.

    A folder of frames is one that holds two or more images directly; their names are sorted naturally (2 before 10).
    Splits, classes and names are those of `ImageFolder`, of clips instead of images. Of every clip an epoch has
    `length` frames in one crop: in training from a random time on, in evaluation from the middle. Clips that cannot be
    read, that break off or that are too short are named in the log of skipped images.
    """

    noun: ClassVar[str] = "clip"
    extensions: ClassVar[frozenset[str]] = EXTENSIONS

    def __init__(
        self,
        root: str,
        size: int = 224,
        *,
        length: int = 8,
        stride: int = 1,
        rate: float | None = None,
        backend: Backend = "pyav",
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        labels: bool | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> None:
        """
        Args:
            root: the folder.
            size: side of the square frames in a batch, in pixels.
            length: frames T of a clip.
            stride: every n-th frame of the file is one of the clip.
            rate: frames a second that files are brought to first, by leaving out or repeating; None takes each
                file's own. A folder of frames has 25.
            backend: what decodes video files: "pyav", or "torchcodec", which is a package of its own.
            val: as for `ImageFolder`.
            test: as for `ImageFolder`.
            val_fraction: as for `ImageFolder`.
            test_fraction: as for `ImageFolder`.
            labels: as for `ImageFolder`.
            batch_size: clips per batch and process.
            settings: the arguments of `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a folder is missing or a split is empty.
            ImportError: in `setup`, if there are video files and the backend's package is missing.
        """
        if settings.get("bucket_by", "random") != "random":
            raise ValueError("ClipFolder: bucket_by must be random: the sizes of clips are not read before training")
        splits: dict[str, Any] = {"val": val, "test": test, "val_fraction": val_fraction}
        splits |= {"test_fraction": test_fraction, "labels": labels}
        super().__init__(root, size, batch_size=batch_size, **splits, **settings)
        self.cut = ClipCut(length, stride, rate, self.max_pixels, backend, owner="ClipFolder")

    @cached_property
    def collate(self) -> Callable[[list[Any]], Any]:
        return partial(collate_clips, list_fields=self.list_fields)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), **self.cut.settings()}

    def walk(self, folder: Path) -> Listing:
        files = list_files(folder, EXTENSIONS, self.cache_listing)
        if len(files):
            import_backend(self.cut.backend)  # now, and not once for every file in the log
        images = list_files(folder, IMAGE_EXTENSIONS, self.cache_listing)
        clips = files.as_dict()
        for holder, count in zip(images.folders, np.bincount(images.holders), strict=True):
            if count > 1:
                name = holder.rstrip("/") or "."
                status = os.stat(folder / name)
                clips[name] = status.st_dev << 64 | status.st_ino
        return Listing.of(clips)

    def make_dataset(self, split: str) -> ClipFiles:
        return ClipFiles(self, split, *self.split_members(split), split == "train")

    def make_plain_train_dataset(self) -> ClipFiles:
        return ClipFiles(self, "train", *self.split_members("train"), False)


class ClipFiles(ImageFiles):
    """The cropped clips of one split; None for a clip that cannot be read."""

    def __init__(self, module: ClipFolder, *split: Any) -> None:
        super().__init__(module, *split)
        self.cut = module.cut

    def read(self, path: str, name: str, index: int) -> Tensor:
        """The frames of a clip in their common crop, (T, 3, H, W); only cropped frames are kept."""
        generator = sample_generator(self.seed, index) if self.training else None
        return self.cut(path, (self.train_crop, self.eval_crop), generator, getattr(index, "size", None))
