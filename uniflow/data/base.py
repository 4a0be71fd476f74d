"""The base class of all data modules: loaders, order, and a position that a checkpoint can bring back."""

from __future__ import annotations

import itertools
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, default_collate

from uniflow.data.position import TrainPosition
from uniflow.data.sampler import EvaluationSampler, SampleIndex, TrainSampler
from uniflow.data.skipped import SkipLog

SPLITS = ("train", "val", "test")


class ImageDataModule(LightningDataModule, ABC):
    """Serves batches as dicts with "image": uint8 (B, 3, H, W) RGB in [0, 255], and whatever else a sample holds.

    In validation and test, a sample may say as "name" what tables and pictures are to call it.

    A subclass gives one dataset per split through `make_dataset`, and may set `class_names` there or in `__init__`.
    A map-style dataset returns one dict a sample; it is handed a `SampleIndex`, and draws the randomness of training
    from `sample_generator(self.seed, index)`, so that a sample is a function of (seed, epoch, index). It returns
    None for a sample that cannot be had, which is left out of its batch.

    All splits are there after `setup` of any stage: a linear probe at test time is fitted on "val".

    The state stored in a checkpoint is the epoch and the number of samples trained on in it. A resumed run reads
    exactly the samples that the interrupted one had not reached, with another batch size or number of processes, too.

    Attributes:
        class_names: names of the values of "label", in order; None without labels.
        skip_log: where a dataset records what it cannot read: `skipped_images.log` in the run folder.
        size: side of the images in pixels, or (height, width).
        collate: makes a batch from a list of samples; torch's default stacks tensors of equal shape.
    """

    class_names: list[str] | None = None
    size: int | tuple[int, int]
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def __init__(self, batch_size: int = 64, num_workers: int = 2, seed: int = 0) -> None:
        """
        Args:
            batch_size: samples a batch and process.
            num_workers: worker processes a loader; 0 reads in the main process.
            seed: the seed of order and augmentation, >= 0.

        Raises:
            ValueError: if a number is out of range.
        """
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{type(self).__name__}: {name} must be at least {least}, not {value}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[str, Dataset] = {}
        self.skip_log = SkipLog(None)
        self.position = TrainPosition(self)

    @abstractmethod
    def make_dataset(self, split: str) -> Dataset:
        """The dataset of `split`, one of "train", "val", "test"."""

    def setup(self, stage: str | None = None) -> None:
        """Make the datasets of all splits, once."""
        if stage == "fit" and self.trainer is not None:
            self._follow(self.trainer)
        if not self.datasets:
            if self.trainer is not None:
                folder = self.trainer.log_dir or self.trainer.default_root_dir
                self.skip_log = SkipLog(Path(folder) / "skipped_images.log")
            self.datasets = {split: self.make_dataset(split) for split in SPLITS}

    def teardown(self, stage: str) -> None:
        """Say how many images were skipped, if any."""
        summary = self.skip_log.summary()
        if summary is not None:
            rank_zero_warn(f"{type(self).__name__}: {summary}")

    @property
    def rank(self) -> int:
        """This process's number among all processes."""
        if self.trainer is not None:
            return self.trainer.global_rank
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """The number of processes that share the data."""
        if self.trainer is not None:
            return self.trainer.world_size
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def crops(self) -> dict[str, Any]:
        """Settings of the evaluation crop, for the evaluation protocol's fingerprint."""
        return {"size": self.size}

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of equal size; the samples left over at the end of an epoch are dropped."""
        return self._train_loader(self.position.begin)

    def training_batches(self) -> Iterator[Any]:
        """Batches as training sees them, of epoch 0, 1, 2 and so on without end; training's position is left alone."""
        epochs = itertools.count()
        loader = self._train_loader(lambda epoch: (next(epochs), 0))
        while True:
            yield from loader

    def _train_loader(self, begin: Callable[[int], tuple[int, int]]) -> DataLoader:
        """The training loader whose passes begin where `begin` says, see `TrainSampler.begin`."""
        dataset = self._dataset("train")
        per_rank = len(dataset) // self.world_size  # type: ignore[arg-type]
        if per_rank < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: {per_rank} training images a process do not fill one batch; "
                f"set batch_size to {per_rank} or less (it is {self.batch_size})"
            )
        sampler = self.train_sampler(dataset)
        sampler.begin = begin
        sampler.set_epoch(self.position.epoch)
        return self._loader(_Complete(dataset), sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def train_sampler(self, dataset: Dataset) -> TrainSampler:
        """The order in which a map-style dataset is trained on."""
        return TrainSampler(dataset, self.world_size, self.rank, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Every validation sample once, over all processes."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Every test sample once, over all processes."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test samples."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, int]:
        """The position in training, and the settings under which it was reached."""
        if self.trainer is None:
            return {}
        return {"epoch": self.position.epoch, "samples": self.position.samples, **self._settings()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up training where `state_dict` says."""
        if not state_dict:
            return
        settings = {**self._settings(), **state_dict}
        # Older checkpoints count the batches of one process.
        old = settings.get("batches", 0) * settings["batch_size"] * settings["world_size"]
        self.position.epoch, self.position.samples = settings["epoch"], settings.get("samples", old)
        changed = {
            name: f"{name} {settings[name]} -> {value}"
            for name, value in self._settings().items()
            if settings[name] != value
        }
        if self.position.samples and (inexact := [changed[name] for name in self._exact_only() if name in changed]):
            rank_zero_warn(
                f"resuming in mid-epoch with {', '.join(inexact)}: some samples are seen twice or not at all"
            )

    @property
    def global_batch(self) -> int:
        """Samples that all processes together train on in one batch."""
        return self.batch_size * self.world_size

    def epoch_batches(self) -> int:
        """Batches of a whole epoch, for each process."""
        return len(self._dataset("train")) // self.global_batch  # type: ignore[arg-type]

    def batches_left(self, samples: int) -> int:
        """Batches of an epoch, for each process, that follow the first `samples` samples of all processes."""
        return (len(self._dataset("train")) - samples) // self.global_batch  # type: ignore[arg-type]

    def _settings(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "seed": self.seed, "world_size": self.world_size}

    def _exact_only(self) -> tuple[str, ...]:
        """Settings that cannot change in mid-epoch without a sample being seen twice or not at all."""
        return ("seed",)

    def _follow(self, trainer: Any) -> None:
        """Count from the start of a fit; a checkpoint that is loaded afterwards sets the counts."""
        self.position.epoch = self.position.samples = 0
        if self.position not in trainer.callbacks:
            trainer.callbacks.insert(0, self.position)  # first, so that a checkpoint of this batch has counted it

    def _dataset(self, split: str) -> Dataset:
        if split not in self.datasets:
            self.setup()
        return self.datasets[split]

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self._dataset(split)
        sampler = EvaluationSampler(dataset, self.world_size, self.rank, self.batch_size)
        batches = _Batches(dataset, self.collate, self.world_size)
        return self._loader(batches, sampler=sampler, batch_size=None)

    def _loader(
        self,
        dataset: Dataset,
        loader: type[DataLoader] | None = None,
        *,
        batch_size: int | None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> DataLoader:
        """A loader with this module's settings; a dataset read with `batch_size` None gives whole batches."""
        workers = self.num_workers if num_workers is None else num_workers
        return (loader or ResumableDataLoader)(
            dataset,
            batch_size=batch_size,
            collate_fn=None if batch_size is None else self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
            **kwargs,
        )


class ResumableDataLoader(DataLoader):
    """A `DataLoader` that Lightning knows to be resumable: the data module keeps its position, so it has no state."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, which begins when the first batch is asked for: Lightning asks for an iterator before it has
        # restored its state. An evaluation batch without one readable sample is None; the next one takes its place.
        for batch in super().__iter__():
            if batch is not None:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _outlive_signals(worker: int) -> None:
    """Let a worker finish its work when a whole job is asked to stop: the running step still needs it.

    torch's workers die at SIGTERM, and take the main process along. They end with it, or two minutes later.
    """
    if os.name == "posix":
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(120))
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


class _Complete(Dataset):
    """The training view of a dataset: a sample that cannot be had is replaced by the next one that can."""

    ATTEMPTS = 100

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        epoch, size = getattr(index, "epoch", 0), getattr(index, "size", None)
        for offset in range(min(self.ATTEMPTS, len(self))):
            sample = self.dataset[SampleIndex((index + offset) % len(self), epoch, size)]
            if sample is not None:
                return sample
        raise RuntimeError(f"no readable image among the {offset + 1} from number {int(index)} on; see the skip log")


class _Batches(Dataset):
    """The evaluation view of a dataset, indexed by lists: a sample that cannot be had is left out of its batch."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any], world_size: int) -> None:
        self.dataset, self.collate, self.world_size = dataset, collate, world_size

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: list[int] | int) -> Any:
        if isinstance(indices, int):  # Lightning's overfit_batches puts a sequential sampler here
            indices = [indices]
        samples = [s for s in (self.dataset[SampleIndex(i)] for i in indices) if s is not None]
        if samples:
            return self.collate(samples)
        if self.world_size > 1:
            raise RuntimeError(
                f"none of the evaluation images {indices} can be read, and a process cannot leave out a whole batch "
                "when others wait for it; remove the files named in the skip log or raise batch_size"
            )
        return None
