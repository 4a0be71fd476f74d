"""The two checkpoints of a run: RUN/last.ckpt to resume from, RUN/best.ckpt to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor
from torch.utils._pytree import tree_leaves

from uniflow.core.atomic import replacing
from uniflow.core.disk import require_space
from uniflow.core.torch_files import check_archive
from uniflow.sharding.checkpoint import AVERAGE, MODEL, is_sharded_checkpoint, read_meta, read_tensors
from uniflow.training.trainer import is_dry_run

warning_cache = WarningCache()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name beside its final one, and renames it when it is complete.

    Lightning's own holds a second copy in memory and writes to the system's folder for temporary files. Where that is
    another file system, the file is copied over the old checkpoint, and a kill during the copy leaves a broken file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`; a path with a protocol, as in "s3://", is left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        require_space(Path(path), sum(t.nbytes for t in tree_leaves(checkpoint) if isinstance(t, Tensor)))
        with replacing(Path(path)) as new, open(new, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The content of a checkpoint; of a folder that `fsdp2` wrote, what evaluation needs: no optimizer's state."""
        if is_sharded_checkpoint(Path(path)):
            tensors = {"state_dict": read_tensors(Path(path), MODEL), "ema": read_tensors(Path(path), AVERAGE)}
            return {**read_meta(Path(path)), **tensors}
        if "://" not in str(path):
            check_archive(path)
        return super().load_checkpoint(path, *args, **kwargs)


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that writes one file of a fixed name into the run's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(RunCheckpoint):
    """Writes RUN/last.ckpt after every validation (every training epoch without one) and at the end of training.

    Args:
        every_n_train_steps: number of training steps between two writes, instead.
        every_n_epochs: number of epochs between two writes, instead.
        save_weights_only: leave out the optimizer's state; such a checkpoint cannot be resumed from.
        save_on_exception: also write when training is interrupted.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        save_weights_only: bool = False,
        save_on_exception: bool = False,
    ) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            save_weights_only=save_weights_only,
            save_on_exception=save_on_exception,
            enable_version_counter=False,
        )

        self.outdated = False  # whether the state has changed since the last step, such as by statistics

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's own hook writes only if nothing was ever written; the last steps would be missing.
        new = trainer.global_step > self._last_global_step_saved or self.outdated
        if new and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING and not is_dry_run(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
        self.outdated = False


class BestCheckpoint(RunCheckpoint):
    """Writes RUN/best.ckpt whenever a validation improves on the best so far.

    Args:
        monitor: the logged metric to compare. None is the task's own, such as val/psnr of a tokenizer; for a task
            without one no file is written, and a line says so.
        mode: whether less or more of it is better; None is the task's own, or max.
        save_weights_only: leave out the optimizer's state.

    Raises:
        MisconfigurationException: after the first validation, if the metric that was given is not logged.
    """

    def __init__(
        self, monitor: str | None = None, mode: Literal["min", "max"] | None = None, save_weights_only: bool = False
    ) -> None:
        self._optional, self._mode_given = monitor is None, mode is not None
        super().__init__(
            filename="best",
            monitor=monitor or "val/psnr",
            mode=mode or "max",
            save_weights_only=save_weights_only,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        monitor = getattr(pl_module, "monitor", None)
        if self._optional and monitor is not None:
            self.monitor, mode = monitor
            if not self._mode_given:
                self.mode = mode
                self.kth_value = torch.tensor(float("inf" if mode == "min" else "-inf"))
        super().setup(trainer, pl_module, stage)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self._optional and self.monitor not in monitor_candidates:
            warning_cache.info(
                f"no {self.monitor} is logged, so no best.ckpt: name a metric with best_checkpoint.monitor"
            )
            return
        super()._save_topk_checkpoint(trainer, monitor_candidates)
