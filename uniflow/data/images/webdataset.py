"""The data module for WebDataset shards, local or remote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import tensor
from torch.utils.data import DataLoader, IterableDataset

from uniflow.data.base import ResumableDataLoader
from uniflow.data.images.captions import CAPTION, CaptionSource
from uniflow.data.images.crops import CroppedImages
from uniflow.data.images.shard_counts import shard_counts
from uniflow.data.images.shard_lists import INDEX, index_counts, read_index, separate, shard_urls
from uniflow.data.images.shards import EvaluationShards, ShardReader, TrainShards


class WebDataset(CroppedImages):
    """Shards (tar files) of images; a batch is {"image": uint8 (B, 3, size, size)}, with classes "label": int64 (B,),
    and with `caption` "caption", a list of B texts.
    In validation and test there is also "name": a sample's key, which is its path in the shard without the extension.

    A sample is an image file and, with classes, a `.cls` file (an integer as text) or a `.json` file with an
    integer "label"; with captions also a `.txt` file, or a text in the `.json` file. `uniflow pack` makes such shards,
    and an `index.json` that is read if it lies next to local ones.

    An epoch is `epoch_length` training samples. With `resample` each worker draws shards with replacement, so that
    any number of processes and workers can share any number of shards. Without it the shards are shuffled and divided
    among them, and a worker that runs out of samples before the epoch ends starts its shards again.

    With fewer shards than `num_workers` a loader has fewer workers.
    """

    field_hints: ClassVar[dict[str, str]] = {
        CAPTION: "set data.caption to the field that holds the captions: txt, or json:KEY",
        "label": "set data.num_classes",
    }

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        test: str | list[str],
        size: int = 224,
        *,
        epoch_length: int | None = None,
        resample: bool = True,
        shuffle_buffer: int = 1000,
        num_classes: int | None = None,
        image_field: str | None = None,
        caption: str | None = None,
        allow_missing: bool = False,
        **settings: Any,
    ) -> None:
        """
        Args:
            train: the training shards: a path or URL with braces, as in "data/train-{000000..000099}.tar", a local
                pattern, as in "data/train-*.tar", or a list of these.
            val: the validation shards, in the same form.
            test: the test shards, in the same form.
            size: side of the square images in a batch, in pixels.
            epoch_length: training samples per epoch, over all processes; by default the number in `index.json`, or
                counted in local shards.
            resample: draw shards with replacement.
            shuffle_buffer: samples in each worker's shuffle buffer, held as undecoded files; 0 or 1: no shuffling.
            num_classes: number of classes; by default those of `index.json`, and no labels without it.
            image_field: the field of a sample that is its image, such as "jpg" or "rgb.png" of `x.rgb.png`. By default
                it is the only field that is an image, or the only one without a dot.
            caption: where a sample's caption is: "txt", its `.txt` file, or "json:KEY", the text under KEY of its
                `.json` file (img2dataset: "json:caption"); by default there are no captions. A sample without one, or
                with one that is empty or not UTF-8, is skipped and named in the log of skipped images.
            allow_missing: evaluate what is left of shards that are cut off, or that hold another number of images than
                their `index.json` says; otherwise that is an error.
            settings: the arguments of `CroppedImages` and `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a local shard is missing or a number is unknown.
        """
        super().__init__(size=size, **settings)
        for name, value in (("epoch_length", epoch_length), ("num_classes", num_classes)):
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, not {value}")
        self.sources = {"train": train, "val": val, "test": test}
        self.epoch_length, self.resample, self.shuffle_buffer = epoch_length, resample, shuffle_buffer
        self.num_classes, self.image_field, self.allow_missing = num_classes, image_field, allow_missing
        self.caption = None if caption is None else CaptionSource.parse(caption, type(self).__name__)
        self._passes = 0

    def setup(self, stage: str | None = None) -> None:
        """Find the shards of all splits and read the classes from their index."""
        self.urls = separate({s: shard_urls(source, s, self.allow_missing) for s, source in self.sources.items()})
        index = read_index(self.urls["train"][0])
        names = index.get("class_names")
        if self.num_classes is not None:
            if names is not None and len(names) != self.num_classes:
                raise ValueError(
                    f"{type(self).__name__}: num_classes is {self.num_classes}, but {INDEX} names {len(names)}"
                )
            names = names or [str(i) for i in range(self.num_classes)]
        self.class_names = names
        super().setup(stage)

    def make_dataset(self, split: str) -> IterableDataset:
        """The stream of `split`'s samples, for this process."""
        return self._stream(split, training=split == "train")

    def make_plain_train_dataset(self) -> IterableDataset:
        return self._stream("train", training=False)

    def make_reader(self, split: str, num_classes: int | None, strict: bool) -> ShardReader:
        """What reads the samples of `split`; arguments as of `ShardReader`."""
        return ShardReader(split, num_classes, self.skip_log, strict=strict, **self.reading())

    def reading(self) -> dict[str, Any]:
        """The other arguments of a `ShardReader`."""
        crops = (self.train_crop, self.eval_crop)
        fields = {"image_field": self.image_field, "caption": self.caption}
        return {**fields, "max_pixels": self.max_pixels, "crops": crops}

    def _stream(self, split: str, training: bool) -> IterableDataset:
        classes = len(self.class_names) if self.class_names is not None else None
        urls, strict = self.urls[split], split != "train" and not self.allow_missing
        reader = self.make_reader(split, classes, strict)
        process: dict[str, int] = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        if not training:
            counts = shard_counts(urls, reader, trust_index=strict) if self.world_size > 1 else None
            options: dict[str, Any] = {"counts": counts, "expected": index_counts(urls), **process}
            return EvaluationShards(reader, urls, self.collate, **options)
        if not self.resample and len(urls) < self.world_size:
            raise ValueError(
                f"{type(self).__name__}: {len(urls)} training shards cannot be divided among {self.world_size} "
                "processes; set resample to true or pack the data into more shards"
            )
        return TrainShards(
            reader, urls, self.buckets, batches=self._batches(), seed=self.seed,
            resample=self.resample, shuffle_buffer=self.shuffle_buffer, versions=self.crops_per_image, **process,
        )  # fmt: skip

    def _train_loader(self, begin: Callable[[int], tuple[int, int]]) -> DataLoader:
        """Batches of equal size, `epoch_length` samples per epoch; samples that do not fill a batch are left out."""
        dataset: Any = self._dataset("train")
        workers = self.num_workers
        if not self.resample:
            workers = self._workers("train", len(dataset.urls) // self.world_size)
        # Lightning's warning does not apply: the length is that of all workers together.
        warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")
        loader = self._loader(dataset, ShardLoader, num_workers=workers, batch_size=self.batch_size)
        assert isinstance(loader, ShardLoader)
        loader.next_position = partial(self._next_position, begin)
        return loader

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset: Any = self._dataset(split)
        workers = self._workers(split, len(dataset.urls))
        if dataset.counts is not None:
            # Each worker divides the samples of its shards among the processes, so it needs at least one per process.
            while workers > 1 and min(sum(dataset.counts[w::workers]) for w in range(workers)) < self.world_size:
                workers -= 1
        return self._loader(dataset, num_workers=workers, batch_size=None)

    def _workers(self, split: str, shards: int) -> int:
        if self.num_workers > shards:
            feed = f"{shards} {split} shards per process can feed {shards} workers, not {self.num_workers}"
            rank_zero_warn(f"{type(self).__name__}: {feed}")
        return min(self.num_workers, shards)

    def _batches(self) -> int:
        length = self.epoch_length
        if length is None:
            counts = shard_counts(self.urls["train"], self.make_reader("train", None, strict=False))
            if counts is None:
                raise ValueError(
                    f"{type(self).__name__}: set epoch_length, the training samples per epoch; "
                    f"the samples of {self.urls['train'][0]} cannot be counted, because it is not local"
                )
            length = sum(counts)
        batches = length // (self.batch_size * self.world_size)
        if batches < 1:
            raise ValueError(
                f"{type(self).__name__}: {length} samples per epoch do not fill a batch of {self.batch_size} on each "
                f"of {self.world_size} processes; lower batch_size or raise epoch_length"
            )
        return batches

    def epoch_batches(self) -> int:
        """Batches of a whole epoch, for each process."""
        dataset: Any = self._dataset("train")
        return dataset.batches

    def batches_left(self, samples: int) -> int:
        """Batches of an epoch, for each process, after the first `samples` samples of all processes."""
        return max(0, self.epoch_batches() - -(-samples // self.global_batch))

    def _settings(self) -> dict[str, int]:
        return {**super()._settings(), "num_workers": self.num_workers}

    def _exact_only(self) -> tuple[str, ...]:
        return tuple(self._settings())  # each process and worker has its own stream

    def _next_position(self, begin: Callable[[int], tuple[int, int]]) -> tuple[int, int]:
        """(epoch, batches to skip) of the pass over the training loader that begins now."""
        epoch, samples = begin(self._passes)
        self._passes = epoch + 1
        return epoch, self.epoch_batches() - self.batches_left(samples)


class ShardLoader(ResumableDataLoader):
    """The training loader: tells its workers where to begin, and knows the length of a whole epoch."""

    next_position: Callable[[], tuple[int, int]]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        dataset: Any = self.dataset
        dataset.position.copy_(tensor(self.next_position()))
        yield from super().__iter__()

    def __len__(self) -> int:
        dataset: Any = self.dataset
        return dataset.batches
