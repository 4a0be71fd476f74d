"""The base class of all data modules: loaders, order, and a position that a checkpoint can restore."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from uniflow.core.distributed import world_size
from uniflow.core.numbers import check_ranges
from uniflow.data.collate import collate
from uniflow.data.errors import DataError
from uniflow.data.position import TrainPosition
from uniflow.data.sampler import EvaluationSampler, SampleIndex, TrainSampler
from uniflow.data.skipped import SkipLog

SPLITS = ("train", "val", "test")
PLAIN_TRAIN = "plain train"  # the training samples as in evaluation


class ImageDataModule(LightningDataModule, ABC):
    """Serves batches as dicts with "image": uint8 (B, 3, H, W) RGB in [0, 255], and whatever else a sample holds.

    In validation and test, a sample may have a "name", which tables and figures use for it.

    A subclass returns one dataset per split from `make_dataset`, and may set `class_names` there or in `__init__`.
    A map-style dataset returns one dict per sample. Its index is a `SampleIndex`, and it draws the randomness of
    training from `sample_generator(self.seed, index)`, so that a sample is a function of (seed, epoch, index). It
    returns None for a sample that cannot be read; that sample is left out of its batch.

    All splits are available after `setup` of any stage: a linear probe at test time is fitted on "val".

    The state stored in a checkpoint is the epoch and the number of its samples that were trained on. A resumed run
    reads exactly the samples that the interrupted one had not reached, also with another batch size or number of
    processes.

    Attributes:
        class_names: names of the values of "label", in order; None without labels.
        list_fields: fields that a batch holds as lists, because their shapes differ between samples.
        field_hints: what to set so that batches have a field; for the message where one is missing.
        skip_log: where a dataset records what it cannot read: `skipped_images.log` in the run folder.
        size: side of the images in pixels, or (height, width).
    """

    class_names: list[str] | None = None
    list_fields: ClassVar[frozenset[str]] = frozenset()
    field_hints: ClassVar[dict[str, str]] = {}
    size: int | tuple[int, int]

    def __init__(self, batch_size: int = 64, num_workers: int = 2, seed: int = 0) -> None:
        """
        Args:
            batch_size: samples per batch and process.
            num_workers: worker processes per loader; 0 reads in the main process.
            seed: seed of order and augmentation, >= 0.

        Raises:
            ValueError: if a number is out of range.
        """
        super().__init__()
        numbers = {
            "batch_size": (batch_size, 1, 2**20),
            "num_workers": (num_workers, 0, 1024),
            "seed": (seed, 0, 2**63),
        }
        check_ranges(type(self).__name__, numbers)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.datasets: dict[str, Dataset] = {}
        self.skip_log = SkipLog(None)
        self.position = TrainPosition(self)

    @abstractmethod
    def make_dataset(self, split: str) -> Dataset:
        """The dataset of `split`, one of "train", "val", "test"."""

    @cached_property
    def collate(self) -> Callable[[list[Any]], Any]:
        """Makes a batch of a list of samples; it does not refer to this module, so that it can go to workers."""
        return partial(collate, list_fields=self.list_fields)

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
        """Warn about the number of skipped images, if any."""
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
        return world_size()

    @property
    def repeats_samples(self) -> bool:
        """Whether later epochs have training samples of earlier ones, unchanged."""
        return True

    def crops(self) -> dict[str, Any]:
        """Settings of the evaluation crop, for the evaluation protocol's fingerprint."""
        return {"size": self.size}

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of equal size; the samples left over at the end of an epoch are dropped."""
        return self._train_loader(self.position.begin)

    def training_batches(self) -> Iterator[Any]:
        """Batches as in training, of epoch 0, 1, 2 and so on without end; the position of training does not change."""
        epochs = itertools.count()
        loader = self._train_loader(lambda epoch: (next(epochs), 0))
        while True:
            yield from loader

    def _train_loader(self, begin: Callable[[int], tuple[int, int]]) -> DataLoader:
        """The training loader; `begin` says where each pass begins, see `TrainSampler.begin`."""
        dataset = self._dataset("train")
        per_rank = len(dataset) // self.world_size  # type: ignore[arg-type]
        if per_rank < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: {per_rank} training images per process do not fill one batch; "
                f"set batch_size to {per_rank} or less (it is {self.batch_size})"
            )
        sampler = self.train_sampler(dataset)
        sampler.begin = begin
        sampler.set_epoch(self.position.epoch)
        return self._loader(_Complete(dataset), sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def train_sampler(self, dataset: Dataset) -> TrainSampler:
        """The order of training on a map-style dataset."""
        return TrainSampler(dataset, self.world_size, self.rank, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Every validation sample once, over all processes."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Every test sample once, over all processes."""
        return self._evaluation_loader("test")

    def plain_train_dataloader(self) -> DataLoader:
        """Every training sample once, over all processes, as in evaluation: what k-NN and the like are fitted on."""
        if PLAIN_TRAIN not in self.datasets:
            self._dataset("train")  # makes those of all splits
            self.datasets[PLAIN_TRAIN] = self.make_plain_train_dataset()
        return self._evaluation_loader(PLAIN_TRAIN)

    def make_plain_train_dataset(self) -> Dataset:
        """The training samples without augmentation; a subclass whose `make_dataset` augments overrides this."""
        return self.make_dataset("train")

    def predict_dataloader(self) -> DataLoader:
        """The test samples."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, int]:
        """The position in training, and the settings under which it was reached."""
        if self.trainer is None:
            return {}
        return {"epoch": self.position.epoch, "samples": self.position.samples, **self._settings()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue training at the position in `state_dict`."""
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

    @property
    def evaluation_batch_size(self) -> int:
        """Samples per batch and process in validation and test."""
        return self.batch_size

    def epoch_batches(self) -> int:
        """Batches of a whole epoch, for each process."""
        return len(self._dataset("train")) // self.global_batch  # type: ignore[arg-type]

    def batches_left(self, samples: int) -> int:
        """Batches of an epoch, for each process, after the first `samples` samples of all processes."""
        return (len(self._dataset("train")) - samples) // self.global_batch  # type: ignore[arg-type]

    def _settings(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "seed": self.seed, "world_size": self.world_size}

    def _exact_only(self) -> tuple[str, ...]:
        """Settings that cannot change in mid-epoch without a sample being seen twice or not at all."""
        return ("seed",)

    def _follow(self, trainer: Any) -> None:
        """Start counting at the start of a fit; a checkpoint that is loaded afterwards sets the counts."""
        self.position.epoch = self.position.samples = 0
        if self.position not in trainer.callbacks:
            trainer.callbacks.insert(0, self.position)  # first, so that a checkpoint after this batch includes it

    def _dataset(self, split: str) -> Dataset:
        if split not in self.datasets:
            self.setup()
        return self.datasets[split]

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self._dataset(split)
        sampler = EvaluationSampler(dataset, self.world_size, self.rank, self.evaluation_batch_size)
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
        """A loader with this module's settings; `batch_size` None: the dataset returns whole batches."""
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
    """A `DataLoader` that Lightning treats as resumable; it has no state, because the data module keeps the position.

    Its workers end at once when the process ends, also after an error.

    Raises:
        DataError: if the samples of a batch do not fit together, or none can be read; one line, also if a worker
            raised it.
    """

    _watched: weakref.ref[Any] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because it starts at the first batch: Lightning asks for an iterator before it has restored its
        # state. An evaluation batch without a readable sample is None and is skipped.
        readable = unreadable = 0
        try:
            for batch in self._batches():
                if batch is None:
                    unreadable += 1
                else:
                    readable += 1
                    yield batch
        except DataError as error:  # from a worker its text is a whole traceback
            raise type(error)(str(error).strip().rsplit(f"{type(error).__name__}: ", 1)[-1]) from error
        if unreadable and not readable:
            raise DataError(
                "not one image can be read; the skipped files are named in the log of skipped images, or above"
            )

    def _batches(self) -> Iterator[Any]:
        iterator: Any = super().__iter__()
        if self.num_workers and (self._watched is None or self._watched() is not iterator):
            self._watched = weakref.ref(iterator)
            # After torch's own clean-up was registered, so that it runs first: torch waits 5 seconds for each worker.
            end = partial(_end_workers, self._watched)
            atexit.register(end)
            Finalize(None, end, exitpriority=100)  # child processes of `multiprocessing` do not call `atexit`
        return iterator

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _outlive_signals(worker: int) -> None:
    """Let a worker finish its work when a whole job is asked to stop: the current step still needs it.

    By default torch's workers die at SIGTERM, and so does the main process then. With this they end together with
    the main process, or after two minutes.
    """
    if os.name == "posix":
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(120))
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def _end_workers(reference: weakref.ref[Any]) -> None:
    """End the workers of a loader's iterator that is still there when the process ends."""
    iterator = reference()
    if iterator is None or os.name != "posix":
        return
    for worker in iterator._workers:
        if worker._parent_pid == os.getpid() and worker.is_alive():
            os.kill(worker.pid, signal.SIGALRM)  # see `_outlive_signals`


class _Complete(Dataset):
    """A dataset for training: a sample that cannot be read is replaced by the next one that can."""

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
        raise DataError(f"no readable image among the {offset + 1} images from index {int(index)} on; see the skip log")


class _Batches(Dataset):
    """A dataset for evaluation, indexed by lists: a sample that cannot be read is left out of its batch."""

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
            raise DataError(
                f"none of the evaluation images {indices} can be read, and a process cannot skip a whole batch "
                "while others wait for it; remove the files named in the skip log or raise batch_size"
            )
        return None
