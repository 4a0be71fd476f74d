"""The position of training in the data, which a checkpoint restores on any number of processes."""

from __future__ import annotations

from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class TrainingData(Protocol):
    """What `TrainPosition` needs to know about a data module."""

    trainer: Trainer | None
    batch_size: int

    @property
    def world_size(self) -> int:
        """The number of processes that share the data."""

    @property
    def global_batch(self) -> int:
        """Samples that all processes together train on in one batch."""

    def epoch_batches(self) -> int:
        """Batches of a whole epoch, for each process."""

    def batches_left(self, samples: int) -> int:
        """Batches of an epoch, for each process, after the first `samples` samples of all processes."""


class TrainPosition(Callback):
    """Counts the samples trained on, over all processes, in the current pass over the training data.

    A data module adds it to its trainer. It does not rely on Lightning's counters: that of epochs is wrong after a
    run is resumed between two epochs or after max_steps, and that of batches means other samples once the batch size
    or the number of processes has changed. Both counters are corrected here.

    Attributes:
        epoch: number of the pass over the data, from 0.
        samples: samples of that pass that all processes together have trained on.
    """

    def __init__(self, data: TrainingData) -> None:
        self.data = data
        self.epoch = self.samples = 0

    def begin(self, epoch: int) -> tuple[int, int]:
        """(epoch, samples to skip) of the pass that begins now.

        Args:
            epoch: the sampler's own epoch, which is used without a trainer.
        """
        trainer = self.data.trainer
        if trainer is None:
            if epoch != self.epoch:
                self.epoch, self.samples = epoch, 0
            return self.epoch, self.samples
        if self.samples and _progress(trainer).current.ready == 0:  # the previous pass was not finished
            self._next_epoch()
        epochs = trainer.fit_loop.epoch_progress
        for counts in (epochs.total, epochs.current):
            counts.__dict__.update(self._epochs_in_mid_epoch())
        return self.epoch, self.samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += self.data.global_batch
        if _progress(trainer).is_last_batch or batch_idx + 1 >= trainer.num_training_batches:
            self._next_epoch()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert Lightning's number of finished batches to batches of this run's size."""
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        progress = loops.get("epoch_loop.batch_progress")
        if not progress or not progress["current"]["ready"]:
            return
        whole = self.data.epoch_batches()
        limit: int | float = trainer.limit_train_batches
        batches = int(whole * limit) if isinstance(limit, float) else min(whole, limit)
        done = whole - self.data.batches_left(self.samples)
        if self.samples and done >= batches:  # the rest does not fill a batch
            self._next_epoch()
        if self.samples:
            loops["epoch_progress"] = {name: self._epochs_in_mid_epoch() for name in ("total", "current")}
        else:
            done, progress["is_last_batch"] = batches, True
        shift = done - progress["current"]["processed"]
        if shift and self.samples:
            rank_zero_info(
                f"epoch {self.epoch} continues after {self.samples} samples, which is batch {done} of {batches} for "
                f"{self.data.world_size} processes with {self.data.batch_size} samples each"
            )
        progress["current"] = {name: count + shift for name, count in progress["current"].items()}

    def _epochs_in_mid_epoch(self) -> dict[str, int]:
        """Lightning's counts during this epoch."""
        return {"ready": self.epoch + 1, "started": self.epoch + 1, "processed": self.epoch, "completed": self.epoch}

    def _next_epoch(self) -> None:
        self.epoch, self.samples = self.epoch + 1, 0


def _progress(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.batch_progress
