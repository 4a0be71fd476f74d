"""Shards of video files: the streams of `WebDataset`, of clips instead of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from uniflow.data.images.archives import RawSample
from uniflow.data.images.shards import ShardReader
from uniflow.data.images.webdataset import WebDataset
from uniflow.data.video.cutting import ClipCut, collate_clips
from uniflow.data.video.files import CONTAINERS, VideoBytes
from uniflow.data.video.reading import Backend, import_backend


class ClipShards(WebDataset):
    """Shards (tar files) of video files; a batch holds all frames of its clips, as that of `ClipFolder`:
    {"image": uint8 (B T, 3, size, size), "frames": T}, clip after clip. With classes there is "label", with `caption`
    "caption", in validation and test "name", each for every frame.

    A sample is a file of a known kind (.mp4 .m4v .mov .avi .mkv .webm .gif) and what lies beside it: shards, classes,
    captions, order, processes and resume are those of `WebDataset`. Of every clip an epoch has `length` frames in one
    crop: in training from a random time on, in evaluation from the middle. Files are read from memory and never written
    to disk. Clips that cannot be read, that break off or that are too short are named in the log of skipped images.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        test: str | list[str],
        size: int = 224,
        *,
        length: int = 8,
        stride: int = 1,
        rate: float | None = None,
        backend: Backend = "pyav",
        clip_field: str | None = None,
        shuffle_buffer: int = 100,
        batch_size: int = 8,
        **settings: Any,
    ) -> None:
        """
        Args:
            train: the training shards, as for `WebDataset`.
            val: the validation shards.
            test: the test shards.
            size: side of the square frames in a batch, in pixels.
            length: frames T of a clip.
            stride: every n-th frame of the file is one of the clip.
            rate: frames a second that files are brought to first, by leaving out or repeating; None takes each file's
                own.
            backend: what decodes the files: "pyav", or "torchcodec", which is a package of its own.
            clip_field: the field of a sample that is its clip, such as "mp4". By default it is the only field that is a
                video, or the only one without a dot.
            shuffle_buffer: clips in each worker's shuffle buffer, held as undecoded files; 0 or 1: no shuffling.
            batch_size: clips per batch and process.
            settings: the arguments of `WebDataset`, `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a local shard is missing or a number is unknown.
            ImportError: in `setup`, if the backend's package is missing.
        """
        super().__init__(
            train, val, test, size, image_field=clip_field, shuffle_buffer=shuffle_buffer, batch_size=batch_size,
            **settings,
        )  # fmt: skip
        self.cut = ClipCut(length, stride, rate, self.max_pixels, backend, owner=type(self).__name__)

    @cached_property
    def collate(self) -> Callable[[list[Any]], Any]:
        return partial(collate_clips, list_fields=self.list_fields)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), **self.cut.settings()}

    def setup(self, stage: str | None = None) -> None:
        import_backend(self.cut.backend)  # now, and not once for every clip in the log
        super().setup(stage)

    def make_reader(self, split: str, num_classes: int | None, strict: bool) -> ShardReader:
        return ClipReader(self.cut, split, num_classes, self.skip_log, strict=strict, **self.reading())


class ClipReader(ShardReader):
    """Reads clips; samples have "image" (T, 3, H, W).

    Args:
        cut: cuts the clips out of the files.
        shards: the arguments of `ShardReader`.
    """

    noun: ClassVar[str] = "clip"
    extensions: ClassVar[frozenset[str]] = frozenset(CONTAINERS)

    def __init__(self, cut: ClipCut, *args: Any, **shards: Any) -> None:
        super().__init__(*args, **shards)
        self.cut = cut

    def view(
        self, raw: RawSample, name: str, generator: torch.Generator | None, size: tuple[int, int] | None
    ) -> Tensor:
        assert self.crops is not None
        field = raw["__image__"]
        return self.cut(VideoBytes(f"{name}.{field}", raw[field]), self.crops, generator, size)
