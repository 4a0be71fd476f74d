"""Which sample is read when: training order as a function of (seed, epoch), evaluation order without repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class SampleIndex(int):
    """An index into a map-style dataset that knows the epoch it is drawn in.

    It is an `int`, so any dataset takes it; a dataset that augments reads `epoch` and derives its randomness from
    (seed, epoch, index) with `sample_generator`.

    Attributes:
        size: height and width that the sample's batch has; None: the dataset's own.
    """

    epoch: int
    size: tuple[int, int] | None

    def __new__(cls, index: int, epoch: int = 0, size: tuple[int, int] | None = None) -> SampleIndex:
        self = super().__new__(cls, index)
        self.epoch, self.size = epoch, size
        return self


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers; neighbouring inputs give unrelated seeds."""
    low, high = np.random.SeedSequence([int(part) for part in parts]).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one sample's augmentation: a function of (seed, epoch, index) and of nothing else.

    Args:
        seed: the data module's seed, >= 0.
        index: the sample's index; a `SampleIndex` brings its epoch, a plain `int` counts as epoch 0.
    """
    return torch.Generator().manual_seed(mix_seed(seed, getattr(index, "epoch", 0), int(index)))


class TrainSampler(DistributedSampler[int]):
    """Shuffles with (seed, epoch), deals the order out to ranks and starts an interrupted epoch where it stopped.

    The order of an epoch is one list for all ranks: rank r of W takes the positions r, r + W, ... So after b batches
    of size B on each rank exactly the first b B W positions are used up, and any other number of ranks can go on from
    there. What does not fill all ranks at the end is left out.

    Lightning leaves it alone, because it is a `DistributedSampler`.

    Attributes:
        begin: called with the epoch that was set when a pass begins; gives the epoch to draw, and how many of its
            positions to leave out. None: the epoch that was set, from its start.
    """

    begin: Callable[[int], tuple[int, int]] | None = None

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, seed: int) -> None:
        # Mixed, because the base class adds the epoch to the seed: epoch 1 of seed 0 must not be epoch 0 of seed 1.
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=mix_seed(seed) >> 16, drop_last=True)

    def __iter__(self) -> Iterator[SampleIndex]:
        start = self.begin_pass()
        order = self.order()[start:]
        whole = len(order) // self.num_replicas * self.num_replicas
        return (SampleIndex(i, self.epoch) for i in order[self.rank : whole : self.num_replicas])

    def begin_pass(self) -> int:
        """How many positions, over all ranks, the pass that begins now leaves out; `epoch` is set to that pass's."""
        if self.begin is None:
            return 0
        self.epoch, start = self.begin(self.epoch)
        return start

    def order(self) -> list[int]:
        """The order of the epoch, as one list for all ranks."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]

    # __len__ stays that of the whole epoch: Lightning counts on from the batch where the run stopped.


class EvaluationSampler(DistributedSampler[list[int]]):
    """Batches (lists of indices) in which every sample occurs exactly once over all ranks.

    All ranks get the same number of batches, so that no rank waits for another in a collective; their sizes differ
    where the samples do not divide evenly. Meant for `DataLoader(sampler=..., batch_size=None)`.

    Raises:
        ValueError: if there are fewer samples than ranks.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, batch_size: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        total = len(dataset)  # type: ignore[arg-type]
        self.sizes = batch_sizes(total, rank, num_replicas, batch_size)
        self.indices = range(rank, total, num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        own = iter(self.indices)
        return (list(islice(own, size)) for size in self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def batch_sizes(total: int, rank: int, world_size: int, batch_size: int) -> list[int]:
    """How one rank's share of `total` samples is cut into batches: as many batches on every rank, of nearly equal size.

    Args:
        total: samples of all ranks, of which rank r has the numbers r, r + world_size, ...
        rank: this process.
        world_size: number of processes.
        batch_size: the size that is exceeded only where a rank with one sample more has no other place for it.

    Raises:
        ValueError: if there are fewer samples than ranks.
    """
    if 0 < total < world_size:
        raise ValueError(f"{total} evaluation images cannot be shared by {world_size} processes; use fewer")
    batches = min(-(-total // (world_size * batch_size)), total // world_size)
    own = len(range(rank, total, world_size))
    return [b - a for a, b in pairwise(own * k // max(1, batches) for k in range(batches + 1))]
