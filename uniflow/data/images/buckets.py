"""Buckets: training batches of several heights and widths, one for a whole batch, the same on all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from uniflow.data.images.reading import MAX_PIXELS, ImageReadError, image_size
from uniflow.data.sampler import SampleIndex, TrainSampler, mix_seed

SALT = 0x517E  # keeps the draws of sizes apart from those of crops


class Buckets:
    """The sizes of training batches; which batch has which size is a function of (seed, epoch, batch).

    Attributes:
        sizes: heights and widths in pixels.
        aspects: the different values of width / height among them, in ascending order.
    """

    def __init__(self, sizes: Sequence[int | tuple[int, int]], seed: int = 0) -> None:
        """
        Args:
            sizes: heights and widths in pixels; a single number is a square. All are equally likely.
            seed: the seed of the draws, >= 0.

        Raises:
            ValueError: if there are none, one occurs twice, or a side is shorter than a pixel.
        """
        self.sizes = [(size, size) if isinstance(size, int) else (size[0], size[1]) for size in sizes]
        if not self.sizes:
            raise ValueError("buckets must have at least one size; set them to null for batches of `size`")
        if min(min(size) for size in self.sizes) < 1:
            raise ValueError(f"the sides of buckets must be at least 1 pixel long, not {self.sizes}")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"buckets have a size twice: {self.sizes}")
        self.seed = seed
        self.aspects = np.unique([width / height for height, width in self.sizes])

    @property
    def largest_side(self) -> int:
        """The longest side of any size."""
        return max(max(size) for size in self.sizes)

    def size(self, epoch: int, batch: int, aspect: int | None = None) -> tuple[int, int]:
        """Height and width of the batch with number `batch` in `epoch`.

        Args:
            aspect: draw only among the sizes with the aspect ratio of this index in `aspects`.
        """
        sizes = self.sizes
        if aspect is not None:
            sizes = [(height, width) for height, width in sizes if width / height == self.aspects[aspect]]
        return sizes[mix_seed(self.seed, epoch, batch, SALT) % len(sizes)]

    def nearest_aspect(self, sizes: np.ndarray) -> np.ndarray:
        """For the heights and widths (N, 2) of images, the index in `aspects` of the nearest ratio on a log scale."""
        logarithms = np.log(sizes[:, 1] / sizes[:, 0])
        return np.abs(logarithms[:, None] - np.log(self.aspects)).argmin(1)


class BucketSampler(TrainSampler):
    """The order of training in batches of one size each; every index is a `SampleIndex` with the size of its batch.

    Without `aspects` the order is that of `TrainSampler`. With them, the images of a batch have one aspect ratio, which
    is the same in all processes at that step. Images that do not fill a batch of all processes are left out; these are
    other images in each epoch. All processes have the same number of batches, in every epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int,
        rank: int,
        buckets: Buckets,
        batch_size: int,
        aspects: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            dataset: a map-style dataset.
            num_replicas: number of processes.
            rank: this process.
            buckets: the sizes; their seed is also the seed of the order.
            batch_size: samples per batch and process.
            aspects: for each sample, the index of its aspect ratio in `buckets.aspects`; the same in all processes.

        Raises:
            ValueError: if no aspect ratio has enough images to fill a batch of all processes.
        """
        super().__init__(dataset, num_replicas, rank, buckets.seed)
        self.buckets, self.aspects = buckets, aspects
        self.whole = whole = batch_size * num_replicas  # samples per step, over all processes
        if aspects is None:
            return
        counts = np.bincount(aspects, minlength=len(buckets.aspects))
        if counts.max() < whole:
            raise ValueError(
                f"no bucket has the {whole} training images that a batch of all processes needs "
                f"({self._counted(counts)}); lower batch_size or use fewer aspect ratios"
            )
        if few := [aspect for aspect, count in enumerate(counts) if 0 < count < whole]:
            rank_zero_warn(
                f"{counts[few].sum()} training images are never seen: their aspect ratio has fewer than the {whole} "
                f"images that a batch of all processes needs ({self._counted(counts)})"
            )
        self.num_samples = int((counts // whole).sum()) * batch_size

    def __iter__(self) -> Iterator[SampleIndex]:
        skipped = self.begin_pass()
        first = -(-skipped // self.whole)  # batch
        if self.aspects is None:
            order, aspects = self.order()[skipped:], None
        else:
            order, aspects = self._order_by_aspect(self.aspects)
            order = order[first * self.whole :]
        return self._sized(order, self.epoch, first, aspects)

    def _sized(self, order: list[int], epoch: int, first: int, aspects: list[int] | None) -> Iterator[SampleIndex]:
        """This rank's share of `order`, which begins with batch `first` and is divided batch by batch."""
        for batch, start in enumerate(range(0, len(order) - self.whole + 1, self.whole), first):
            size = self.buckets.size(epoch, batch, None if aspects is None else aspects[batch])
            for index in order[start + self.rank : start + self.whole : self.num_replicas]:
                yield SampleIndex(index, self.version(epoch), size)

    def _order_by_aspect(self, aspects: np.ndarray) -> tuple[list[int], list[int]]:
        """The order of the epoch for all ranks, and the index of each batch's aspect ratio."""
        generator = np.random.default_rng(mix_seed(self.seed, self.epoch))
        batches = []
        for aspect in range(len(self.buckets.aspects)):
            members = generator.permutation(np.flatnonzero(aspects == aspect))
            ends = range(self.whole, len(members) + 1, self.whole)
            batches += [(aspect, members[end - self.whole : end].tolist()) for end in ends]
        batches = [batches[i] for i in generator.permutation(len(batches))]
        return [index for _, members in batches for index in members], [aspect for aspect, _ in batches]

    def _counted(self, counts: np.ndarray) -> str:
        named = zip(self.buckets.aspects, counts, strict=True)
        return ", ".join(f"width / height {aspect:.2f}: {count}" for aspect, count in named)


def read_sizes(folder: Path, names: Sequence[str], max_pixels: int = MAX_PIXELS, threads: int = 16) -> np.ndarray:
    """Heights and widths (N, 2) of image files, from their headers; 1 x 1 for a file whose header cannot be read.

    With several processes each reads its share, and all get the whole table; all of them have to call this.
    """

    def size(name: str) -> tuple[int, int]:
        try:
            return image_size(folder / name, max_pixels)
        except ImageReadError:  # the skip log names it once training reaches it
            return 1, 1

    distributed = torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    with ThreadPoolExecutor(threads) as pool:
        share = np.array(list(pool.map(size, names[rank::processes])), dtype=np.int64).reshape(-1, 2)
    if not distributed:
        return share
    shares: list[np.ndarray] = [share] * processes
    torch.distributed.all_gather_object(shares, share)
    sizes = np.empty((len(names), 2), dtype=np.int64)
    for first, share in enumerate(shares):
        sizes[first::processes] = share
    return sizes
