"""A run that is asked to make room: it saves its state, stops, and says so by its exit code."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from uniflow.core.exit_codes import INTERRUPTED, REQUEUE
from uniflow.core.numbers import CheckedNumbers, PositiveInt
from uniflow.training.trainer import is_dry_run


class Preempted(Exception):
    """Training stopped because of a signal, and its state is saved.

    Attributes:
        code: the exit code that this process should have.
    """

    def __init__(self, message: str, code: int = REQUEUE) -> None:
        super().__init__(message)
        self.code = code


class Preemption(CheckedNumbers, Checkpoint):
    """On SIGTERM, SIGUSR1 or Ctrl-C, writes RUN/last.ckpt at the end of the running step and raises `Preempted`.

    Ctrl-C a second time stops at once and saves nothing.

    A signal to any process stops all of them after the same step. It is looked for after an optimizer step and after
    a validation; the last step of a run is not interrupted. The checkpoint is one of mid-epoch, from which training
    goes on as if nothing had happened. What belongs to the end of a fit (export, statistics) does not take place.

    While a fit runs these signals are this callback's: Lightning's handlers, which would write a checkpoint in the
    middle of a step and requeue a SLURM job by themselves, have no say. The job script requeues, by the exit code.

    Args:
        signals: names of the signals; None is SIGINT (Ctrl-C), SIGTERM and, where the system has it, SIGUSR1.
        check_every: steps between the checks in which processes agree; with several processes each check is an
            all-reduce of one number. None is each step where no device has to be waited for, else every tenth.

    Raises:
        ValueError: for an unknown signal or a number below 1.
    """

    def __init__(self, signals: list[str] | None = None, check_every: PositiveInt | None = None) -> None:
        known = signal.Signals.__members__
        names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in known] if signals is None else signals
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"Preemption.signals: {unknown[0]!r} is not a signal of this system; SIGTERM is one")
        self.signals = [known[name] for name in names]
        self.check_every = check_every
        self._received: signal.Signals | None = None
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._listen(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        every = self.check_every or (1 if _collective_device(trainer).type == "cpu" else 10)
        if self._step % every == 0 and not _finished(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and not _finished(trainer):
            self._stop_if_asked(trainer)

    def _listen(self, trainer: Trainer) -> None:
        # After Lightning has set its handlers, which it takes down itself, so that nothing is left to restore here.
        if is_dry_run(trainer) or threading.current_thread() is not threading.main_thread():
            return
        for number in self.signals:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            rank_zero_info("Ctrl-C: stopping after this step, the state is saved; Ctrl-C again stops at once")
        self._received = signal.Signals(number)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = torch.tensor(self._received or 0, dtype=torch.int32, device=_collective_device(trainer))
        if trainer.world_size > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if not asked.item():
            return
        path = Path(trainer.default_root_dir) / "last.ckpt"
        trainer.save_checkpoint(path)
        received = signal.Signals(int(asked.item()))
        name = "Ctrl-C" if received == signal.SIGINT else received.name
        message = f"stopped by {name} after step {trainer.global_step}; the state is saved in {path}"
        code = INTERRUPTED if received == signal.SIGINT else REQUEUE
        raise Preempted(message, 0 if _started_by_lightning(trainer) else code)


def _finished(trainer: Trainer) -> bool:
    """Whether the step that has just ended is the run's last."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    if steps != -1 and trainer.global_step >= steps:
        return True
    last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return epochs not in (None, -1) and last_batch and trainer.current_epoch + 1 >= epochs


def _collective_device(trainer: Trainer) -> torch.device:
    """The CPU where processes can talk through it or there is one only, so that no device is waited for."""
    if trainer.world_size == 1 or "cpu:" in str(dist.get_backend_config()):
        return torch.device("cpu")
    return trainer.strategy.root_device


def _started_by_lightning(trainer: Trainer) -> bool:
    """Whether rank 0 started this process: it kills itself when such a process ends with any code but 0."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
