"""Streams of samples from WebDataset shards (tar files), each a function of (seed, epoch, process, worker)."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any, ClassVar

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from uniflow.core.errors import one_line
from uniflow.data.errors import DataError
from uniflow.data.images.archives import BrokenShardError, RawSample, image_field, read_samples
from uniflow.data.images.buckets import Buckets
from uniflow.data.images.captions import CAPTION, CaptionSource
from uniflow.data.images.reading import EXTENSIONS, MAX_PIXELS, ImageReadError, read_image
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.data.sampler import batch_sizes, mix_seed
from uniflow.data.skipped import SkipLog

Crops = tuple[RandomResizedCrop, CenterCrop]


class ShardReader:
    """Reads the samples of one split: raw from a tar file, or as dicts with "image" and, where they are asked for,
    "label" and "caption".

    A subclass whose samples are other files overrides `noun`, `extensions` and `view`.
    """

    noun: ClassVar[str] = "image"
    extensions: ClassVar[frozenset[str]] = EXTENSIONS

    def __init__(
        self,
        split: str,
        num_classes: int | None,
        skip_log: SkipLog,
        *,
        strict: bool = False,
        image_field: str | None = None,
        max_pixels: int = MAX_PIXELS,
        caption: CaptionSource | None = None,
        crops: Crops | None = None,
    ) -> None:
        """
        Args:
            split: the split, for messages.
            num_classes: number of classes; None: no labels.
            skip_log: where samples that cannot be read are named.
            strict: a broken shard, or one with another number of samples than expected, is an error. Otherwise the rest
                of a broken shard is skipped and logged.
            image_field: the field that is the image, such as "jpg" or "rgb.png"; by default the only one that can be.
            max_pixels: images with more pixels are skipped.
            caption: where the captions are; None: no captions. A sample without one is skipped.
            crops: of training and of evaluation; not needed to count samples.
        """
        self.split, self.num_classes, self.skip_log = split, num_classes, skip_log
        self.strict, self.image_field, self.max_pixels = strict, image_field, max_pixels
        self.caption, self.crops = caption, crops

    def raw(self, url: str, expected: int | None = None, contents: bool = True) -> Iterator[RawSample]:
        """The undecoded samples of one shard that have an image, with the name of its field as "__image__".

        Args:
            url: the shard.
            expected: number of samples that its index says it has.
            contents: False: only names are read, and all fields are empty.

        Raises:
            DataError: if the image of a sample is ambiguous; if `strict`, also if the shard is broken.
        """
        number = 0
        try:
            for sample in read_samples(url, contents=contents):
                image = image_field(sample, self.image_field, self.extensions, self.noun)
                if image is None:
                    fields = [name for name in sample if not name.startswith("__")]
                    wanted = self.image_field or self.noun
                    self.skip_log.add(self.split, f"{url}:{sample['__key__']}", f"no {wanted} among {sorted(fields)}")
                    continue
                number += 1
                yield {**sample, "__image__": image}
        except BrokenShardError as error:
            reason = one_line(error)
            if self.strict:
                raise DataError(
                    f"the {self.split} shard {url} is broken ({reason}); replace it, or set allow_missing "
                    "to use the rest"
                ) from error
            self.skip_log.add(self.split, url, f"broken shard, the rest of it is skipped: {reason}")
            return
        if self.strict and expected is not None and number != expected:
            raise DataError(
                f"the {self.split} shard {url} has {number} {self.noun}s, but index.json says {expected}; replace it, "
                f"pack the {self.noun}s again, or set allow_missing to use what is there"
            )

    def read(
        self, raw: RawSample, generator: torch.Generator | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Any] | None:
        """The sample with its cropped image; None and a line in the skip log if it cannot be read.

        Args:
            raw: as `raw` gives it.
            generator: of the random crop of training; None is the crop of evaluation.
            size: height and width of the random crop; by default its own.
        """
        name = f"{raw['__url__']}:{raw['__key__']}"
        try:
            told = self._told(raw, name)
            return {"image": self.view(raw, name, generator, size), **told}
        except ImageReadError as error:
            self.skip_log.add(self.split, name, error.reason)
            return None

    def view(
        self, raw: RawSample, name: str, generator: torch.Generator | None, size: tuple[int, int] | None
    ) -> Tensor:
        """The crop of a sample's image, uint8 (3, H, W); arguments as of `read`.

        Raises:
            ImageReadError: if it cannot be read.
        """
        assert self.crops is not None
        train_crop, eval_crop = self.crops
        content = raw[raw["__image__"]]
        if generator is None:
            return eval_crop(read_image(content, name, max_pixels=self.max_pixels))
        return train_crop.read(content, name, generator, size, self.max_pixels)

    def _told(self, raw: RawSample, name: str) -> dict[str, Any]:
        """What a sample says about its image: "label" and "caption"."""
        told: dict[str, Any] = {}
        if self.num_classes is not None:
            told["label"] = self._label(raw, name, self.num_classes)
        if self.caption is not None:
            told[CAPTION] = self.caption.of_sample(raw, name)
        return told

    def _label(self, raw: RawSample, name: str, num_classes: int) -> int:
        try:
            label = int(raw["cls"]) if "cls" in raw else int(json.loads(raw["json"])["label"])
        except (KeyError, TypeError, ValueError) as error:
            raise ImageReadError(name, "no integer label in .cls or in .json under 'label'") from error
        if not 0 <= label < num_classes:
            raise ImageReadError(name, f"label {label} is not in 0 ... {num_classes - 1}")
        return label


class TrainShards(IterableDataset):
    """An endless stream of training samples, of which one process takes `batches` batches per epoch.

    Each worker is a lane: it draws its own shards, shuffles their samples in a buffer, and yields every `lanes`-th
    batch. The samples of a lane are a function of (seed, epoch, rank, lane), so that it can start anywhere in an epoch:
    the samples before are read from the shards, but not decoded. The slot of an unreadable sample gets the next
    readable one.

    With `versions` the crops of a sample are a function of its shard's name, its key and the epoch modulo `versions`.

    Attributes:
        position: int64 (2,) in shared memory: the epoch, and how many of its batches to skip. Set before iterating.
    """

    def __init__(
        self,
        reader: ShardReader,
        urls: list[str],
        buckets: Buckets | None = None,
        *,
        batches: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        resample: bool,
        shuffle_buffer: int,
        versions: int | None = None,
    ) -> None:
        self.reader, self.urls, self.buckets, self.versions = reader, urls, buckets, versions
        self.batches, self.batch_size, self.rank, self.world_size = batches, batch_size, rank, world_size
        self.seed, self.resample, self.shuffle_buffer = seed, resample, shuffle_buffer
        # Shared, because persistent workers hold copies of everything else.
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        lanes = worker.num_workers if worker else 1
        epoch, start = self.position.tolist()
        # The loader asks its workers in turn, starting with 0: this rotates them to where the epoch was interrupted.
        lane = ((worker.id if worker else 0) + start) % lanes
        first, last = (len(range(lane, batches, lanes)) * self.batch_size for batches in (start, self.batches))
        return self._samples(epoch, lane, lanes, first, last)

    def _samples(self, epoch: int, lane: int, lanes: int, first: int, last: int) -> Iterator[dict[str, Any]]:
        """The samples for the slots `first` to `last` of a lane."""
        waiting: dict[int, dict[str, Any] | None] = {}
        stream = enumerate(self._raw(epoch, lane, lanes)) if first < last else iter(())
        for slot, raw in islice(stream, first, None):
            if slot < last:
                waiting[slot] = None
            # Each slot takes the first sample from its own on that it can read, so a resume gives it the same one.
            for empty in [other for other, sample in waiting.items() if sample is None]:
                seed = self._crop_seed(raw, epoch, lane, empty)
                size = self.buckets.size(epoch, lane + empty // self.batch_size * lanes) if self.buckets else None
                waiting[empty] = self.reader.read(raw, torch.Generator().manual_seed(seed), size)
            while waiting and (sample := waiting[next(iter(waiting))]) is not None:
                del waiting[next(iter(waiting))]
                yield sample
            if waiting and (slot >= last + 1000 or len(waiting) > 1000):
                raise DataError("1000 training samples in a row cannot be read; see the skip log")
            if not waiting and slot >= last - 1:
                return

    def _crop_seed(self, raw: RawSample, epoch: int, lane: int, slot: int) -> int:
        if self.versions is None:
            return mix_seed(self.seed, epoch, self.rank, lane, slot)
        name = f"{os.path.basename(raw['__url__'])}:{raw['__key__']}"
        number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:7], "big")
        return mix_seed(self.seed, number, epoch % self.versions)

    def _raw(self, epoch: int, lane: int, lanes: int) -> Iterator[RawSample]:
        """The lane's undecoded, shuffled samples: pass after pass over shards."""
        for number in count():
            seed = mix_seed(self.seed, epoch, self.rank, lane, number)
            shards = self._shards(epoch, number, lane, lanes, seed)
            samples = chain.from_iterable(self.reader.raw(url) for url in shards)
            if self.shuffle_buffer > 1:
                buffer = {"bufsize": self.shuffle_buffer, "initial": self.shuffle_buffer}
                samples = wds.shuffle(**buffer, rng=random.Random(seed))(samples)
            sample = None
            for sample in samples:
                yield sample
            if sample is None:
                raise DataError(f"no sample in the {len(shards)} training shards {shards[0]} ...")

    def _shards(self, epoch: int, number: int, lane: int, lanes: int, seed: int) -> list[str]:
        if self.resample:
            source = wds.ResampledShards(
                self.urls, nshards=len(self.urls), deterministic=True, seed=seed, worker_seed=lambda: 0
            )
            return [shard["url"] for shard in source]
        # Split by process, then by worker: all lanes have the same shuffled order and take every n-th shard.
        urls = list(self.urls)
        random.Random(mix_seed(self.seed, epoch, number)).shuffle(urls)
        return urls[self.rank :: self.world_size][lane::lanes]


class EvaluationShards(IterableDataset):
    """Every sample of the shards exactly once over all processes, in batches; unreadable ones are left out.

    The shards are divided among workers. With several processes each process reads all shards and keeps every
    `world_size`-th sample. All processes have the same number of batches, so that none waits for another in a
    collective; this requires the number of samples in each shard.

    None stands for a batch without a readable sample.
    """

    def __init__(
        self,
        reader: ShardReader,
        urls: list[str],
        collate: Any,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        counts: list[int] | None,
        expected: list[int | None],
    ) -> None:
        if world_size > 1 and counts is None:
            raise ValueError(
                f"evaluation by {world_size} processes needs the number of samples in each shard; "
                "use local shards, which are counted, or one process"
            )
        self.reader, self.urls, self.collate = reader, urls, collate
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.counts, self.expected = counts, expected

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        lane, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = list(zip(self.urls, self.expected, strict=True))[lane::lanes]
        raw = chain.from_iterable(self.reader.raw(url, expected) for url, expected in shards)
        if self.world_size == 1:
            groups = iter(lambda: list(islice(raw, self.batch_size)), [])
        else:
            assert self.counts is not None
            share = islice(raw, self.rank, None, self.world_size)
            sizes = batch_sizes(sum(self.counts[lane::lanes]), self.rank, self.world_size, self.batch_size)
            groups = (list(islice(share, size)) for size in sizes)
        group: list[RawSample] | None = None
        for group in groups:
            samples = [{**s, "name": r["__key__"]} for r in group if (s := self.reader.read(r)) is not None]
            if samples:
                yield self.collate(samples)
            elif self.world_size > 1:
                raise DataError(
                    f"none of {len(group)} {self.reader.split} samples in a row can be read, and a process cannot skip "
                    "a whole batch while others wait for it; raise batch_size or use one process"
                )
            else:
                yield None
        if group is None:  # no sample: an error if no worker has one
            yield None
        for _ in raw:  # a shard with more samples than its index says is an error
            pass
