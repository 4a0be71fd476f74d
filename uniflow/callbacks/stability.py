"""Stops a run whose loss is not finite, and keeps the batch that did it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Stability(Callback):
    """Raises `NonFiniteLossError` at a loss that is NaN or infinite, before any weights of that step are saved.

    The offending batch goes to `RUN/nonfinite_batch_rank{R}.pt` (read it with `torch.load(..., weights_only=True)`),
    with the step and the seed position. Checkpoints written before stay as they are.

    Args:
        check_every: batches between checks.
        at_once: check before the optimizer steps, so that the weights in memory stay as they were, and wait for the
            device each time. If not, a loss is looked at when the next one has been computed, by when the device is
            long past it, and before validation, the end of training and every `state_dict()` of the module, so before
            every checkpoint. None: at once on a CPU, which computes as it goes, else not.

    Raises:
        ValueError: if `check_every` is below 1.
    """

    def __init__(self, check_every: int = 1, at_once: bool | None = None) -> None:
        if check_every < 1:
            raise ValueError(f"Stability.check_every must be at least 1, got {check_every}")
        self.check_every = check_every
        self.at_once = at_once
        self._batch: Any = None
        self._batch_idx = 0
        self._unchecked: _Loss | None = None
        self._failure: NonFiniteLossError | None = None
        self._hook: RemovableHandle | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unchecked = self._failure = None
        self._hook = pl_module.register_state_dict_pre_hook(lambda *_: self._before_saving(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._hook is not None
        self._hook.remove()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._batch_idx % self.check_every:
            return
        self._check(trainer)
        self._unchecked = _Loss(loss.detach(), self._batch, trainer.global_step, trainer.current_epoch)
        if self.at_once or (self.at_once is None and loss.device.type == "cpu"):
            self._check(trainer, before_step=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def _before_saving(self, trainer: Trainer) -> None:
        if self._failure is not None:  # when an interrupted run is saved
            raise self._failure
        self._check(trainer)

    def _check(self, trainer: Trainer, before_step: bool = False) -> None:
        loss, self._unchecked = self._unchecked, None
        if loss is None or loss.is_finite():
            return
        path = Path(trainer.default_root_dir) / f"nonfinite_batch_rank{trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in loss.batch.items()}
        torch.save({"batch": batch, "global_step": loss.global_step, "epoch": loss.epoch}, path)
        terms = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        failure = NonFiniteLossError(
            f"the loss is {float(loss.value):g} at step {loss.global_step} (logged last: {terms}); the batch is in "
            f"{path}; lower the learning rate or raise gradient clipping (trainer.gradient_clip_val)"
        )
        if not before_step:  # else the weights are sound, and may be saved
            self._failure = failure
        raise failure


@dataclass
class _Loss:
    """A loss (a scalar on any device) whose finiteness is computed and fetched without waiting, and its batch."""

    value: Tensor
    batch: dict[str, Any]
    global_step: int
    epoch: int

    def __post_init__(self) -> None:
        self._finite = torch.isfinite(self.value).all()
        self._fetched: torch.cuda.Event | None = None
        if self.value.device.type == "cuda":
            # Waiting for the stream would wait for the step that has been queued since.
            on_host = torch.empty((), dtype=torch.bool, pin_memory=True)
            on_host.copy_(self._finite, non_blocking=True)
            self._finite, self._fetched = on_host, torch.cuda.Event()
            self._fetched.record()

    def is_finite(self) -> bool:
        if self._fetched is not None:
            self._fetched.synchronize()
        return bool(self._finite)
