"""Stops a run whose loss is no number, and keeps the batch that did it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Stability(Callback):
    """Raises `NonFiniteLossError` at the first loss that is NaN or infinite, before the optimizer steps.

    The offending batch goes to `RUN/nonfinite_batch_rank{R}.pt` (read it with `torch.load(..., weights_only=True)`),
    with the step and the seed position. Checkpoints written before stay as they are.

    Args:
        check_every: batches between checks; each is one wait for the device.
    """

    def __init__(self, check_every: int = 1) -> None:
        if check_every < 1:
            raise ValueError(f"Stability.check_every must be at least 1, got {check_every}")
        self.check_every = check_every
        self._batch: Any = None
        self._batch_idx = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._batch_idx % self.check_every or torch.isfinite(loss).all():
            return
        path = Path(trainer.default_root_dir) / f"nonfinite_batch_rank{trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self._batch.items()}
        torch.save({"batch": batch, "global_step": trainer.global_step, "epoch": trainer.current_epoch}, path)
        terms = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        raise NonFiniteLossError(
            f"the loss is {float(loss.detach()):g} at step {trainer.global_step} (before: {terms}); the batch is in "
            f"{path}; lower the learning rate or raise gradient clipping (trainer.gradient_clip_val)"
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None
