"""The progress bar: a line that is redrawn on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def progress_bar() -> ProgressBar:
    """The bar that suits standard output."""
    return TerminalProgress(leave=True) if sys.stdout.isatty() else LogProgress()


class TerminalProgress(RichProgressBar):
    """Lightning's bar with a clearer name for "Sanity Checking", and without "Epoch 0/-2" if there is no last epoch."""

    @property
    def sanity_check_description(self) -> str:
        return "Trying validation"

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        described = f"Epoch {current_epoch}" + (f"/{last - 1}" if last is not None and last > 0 else "")
        return f"{described:{len(self.validation_description)}}"


class LogProgress(ProgressBar):
    """Prints a line every `SECONDS` and at the end of each epoch: steps, steps per second, metrics."""

    SECONDS = 20.0

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._reset()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            print(*args, **kwargs, flush=True)

    def _reset(self) -> None:
        self._begun = self._printed = time.monotonic()
        self._steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        if time.monotonic() - self._printed >= self.SECONDS:
            self._line(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer, pl_module)

    def _line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        rate = self._steps / max(now - self._begun, 1e-9)
        self._printed = now
        total = trainer.estimated_stepping_batches
        metrics = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
        self.print(f"epoch {trainer.current_epoch}  step {trainer.global_step}/{total:g}  {rate:.2f} steps/s  {shown}")
