"""The order of samples: in training a function of (seed, epoch), in evaluation without repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class SampleIndex(int):
    """An index into a map-style dataset that also holds the epoch.

    It is an `int`, so every dataset accepts it; a dataset that augments reads `epoch` and derives its randomness from
    (seed, epoch, index) with `sample_generator`.

    Attributes:
        size: height and width of the images in the sample's batch; None: the dataset's own.
    """

    epoch: int
    size: tuple[int, int] | None

    def __new__(cls, index: int, epoch: int = 0, size: tuple[int, int] | None = None) -> SampleIndex:
        self = super().__new__(cls, index)
        self.epoch, self.size = epoch, size
        return self


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers; similar inputs give unrelated seeds."""
    low, high = np.random.SeedSequence([int(part) for part in parts]).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one sample's augmentation, which depends only on (seed, epoch, index).

    Args:
        seed: the data module's seed, >= 0.
        index: the sample's index; a `SampleIndex` holds its epoch, a plain `int` means epoch 0.
    """
    return torch.Generator().manual_seed(mix_seed(seed, getattr(index, "epoch", 0), int(index)))


class TrainSampler(DistributedSampler[int]):
    """Shuffles with (seed, epoch), divides the order among ranks and starts an interrupted epoch where it stopped.

    The order of an epoch is one list for all ranks: rank r of W takes the positions r, r + W, ... So after b batches
    of size B on each rank exactly the first b B W positions are used up, and any other number of ranks can continue
    from there. Positions at the end that do not fill all ranks are left out.

    Lightning does not replace it, because it is a `DistributedSampler`.

    Attributes:
        begin: called when a pass begins, with the epoch that was set; returns the epoch to draw, and how many of its
            positions to skip. None: the epoch that was set, from its start.
        versions: epochs after which the augmentations of a sample come again; None: every epoch has its own.
    """

    begin: Callable[[int], tuple[int, int]] | None = None
    versions: int | None = None

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, seed: int) -> None:
        # Mixed, because the base class adds the epoch to the seed: epoch 1 of seed 0 must not be epoch 0 of seed 1.
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=mix_seed(seed) >> 16, drop_last=True)

    def __iter__(self) -> Iterator[SampleIndex]:
        start = self.begin_pass()
        order = self.order()[start:]
        whole = len(order) // self.num_replicas * self.num_replicas
        version = self.version(self.epoch)
        return (SampleIndex(i, version) for i in order[self.rank : whole : self.num_replicas])

    def begin_pass(self) -> int:
        """Number of positions, over all ranks, that the pass that begins now skips; sets `epoch` to its epoch."""
        if self.begin is None:
            return 0
        self.epoch, start = self.begin(self.epoch)
        return start

    def version(self, epoch: int) -> int:
        """The epoch whose augmentations `epoch` has."""
        return epoch if self.versions is None else epoch % self.versions

    def order(self) -> list[int]:
        """The order of the epoch, as one list for all ranks."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]

    # __len__ stays that of the whole epoch: Lightning counts from the batch where the run stopped.


class EvaluationSampler(DistributedSampler[list[int]]):
    """Batches (lists of indices) in which every sample occurs exactly once over all ranks.

    All ranks get the same number of batches, so that no rank waits for another in a collective; the sizes differ if
    the samples do not divide evenly. Meant for `DataLoader(sampler=..., batch_size=None)`.

    Raises:
        ValueError: if there are fewer samples than ranks.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, batch_size: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        total = len(dataset)  # type: ignore[arg-type]
        self.sizes = batch_sizes(total, rank, num_replicas, batch_size)
        self.indices = range(rank, total, num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.indices)
        return (list(islice(indices, size)) for size in self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def batch_sizes(total: int, rank: int, world_size: int, batch_size: int) -> list[int]:
    """Sizes of the batches of one rank's share of `total` samples: the same number on every rank, nearly equal sizes.

    Args:
        total: samples of all ranks; rank r has the numbers r, r + world_size, ...
        rank: this process.
        world_size: number of processes.
        batch_size: size of a batch; larger by one only if a rank with one more sample has no other batch for it.

    Raises:
        ValueError: if there are fewer samples than ranks.
    """
    if 0 < total < world_size:
        raise ValueError(f"{total} evaluation images cannot be shared by {world_size} processes; use fewer")
    batches = min(-(-total // (world_size * batch_size)), total // world_size)
    share = len(range(rank, total, world_size))
    return [b - a for a, b in pairwise(share * k // max(1, batches) for k in range(batches + 1))]
