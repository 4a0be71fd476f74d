"""Stops a run whose loss, gradients or weights are not finite, and keeps the batch that did it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uniflow.core.numbers import CheckedNumbers, PositiveInt
from uniflow.sharding.shard import is_sharded, local


class NonFiniteLossError(RuntimeError):
    """The training loss, its gradients or the weights became NaN or infinite."""


class Stability(CheckedNumbers, Callback):
    """Raises `NonFiniteLossError` at a loss, gradients or weights that are NaN or infinite, before these are saved.

    Looked at are the loss, the norm of all gradients before the optimizer steps (not under a gradient scaler, which
    skips such steps itself), and all weights whenever the module's `state_dict()` is taken during a fit, so before
    every checkpoint. A checkpoint written before stays as it is. Of several processes all stop at the same step:
    reduced gradients are the same in all of them, and sharded weights are looked at together.

    The offending batch goes to `RUN/nonfinite_batch_rank{R}.pt` (read it with `torch.load(..., weights_only=True)`),
    with the step and the seed position.

    Args:
        check_every: batches between checks of loss and gradients.
        at_once: check before the optimizer steps, so that the weights in memory stay as they were, and wait for the
            device each time. If not, a step is looked at when the next loss has been computed, by when the device is
            long past it, and before validation, the end of training and every `state_dict()`. None: at once on a CPU,
            which computes as it goes, else not.

    Raises:
        ValueError: if `check_every` is below 1.
    """

    def __init__(self, check_every: PositiveInt = 1, at_once: bool | None = None) -> None:
        self.check_every = check_every
        self.at_once = at_once
        self._batch: Any = None
        self._batch_idx = 0
        self._unchecked: _Step | None = None
        self._failure: NonFiniteLossError | None = None
        self._hook: RemovableHandle | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unchecked = self._failure = None
        self._hook = pl_module.register_state_dict_pre_hook(lambda *_: self._before_saving(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._hook is not None
        self._hook.remove()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._batch_idx % self.check_every:
            return
        self._check(trainer)
        self._unchecked = _Step(self._batch, trainer.global_step, trainer.current_epoch)
        self._unchecked.add("loss", loss.detach())
        # Of several processes only this one may have it; the others see it in the gradients, and all stop together.
        if self._checks_at_once(loss) and trainer.world_size == 1:
            self._check(trainer, before_step=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._unchecked is None and self._batch_idx % self.check_every:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled or not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self._unchecked is None:  # the loss of this step was looked at on its own
            self._unchecked = _Step(self._batch, trainer.global_step, trainer.current_epoch)
        self._unchecked.add("gradient norm", norm)
        if self._checks_at_once(norm):
            self._check(trainer, before_step=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_saving(trainer, pl_module)

    def _checks_at_once(self, value: Tensor) -> bool:
        return bool(self.at_once or (self.at_once is None and value.device.type == "cpu"))

    def _before_saving(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._failure is not None:  # when an interrupted run is saved
            raise self._failure
        self._check(trainer)
        if not all_finite(pl_module):
            names = [name for name, tensor in _floats(pl_module) if not torch.isfinite(local([tensor])[0]).all()]
            first = f", such as {names[0]}" if names else " in another process"
            self._failure = NonFiniteLossError(
                f"weights{first}, are not finite after step {trainer.global_step}, so nothing is saved; go on from the "
                "last checkpoint with a lower learning rate, or raise gradient clipping (trainer.gradient_clip_val)"
            )
            raise self._failure

    def _check(self, trainer: Trainer, before_step: bool = False) -> None:
        step, self._unchecked = self._unchecked, None
        if step is None or (problem := step.problem()) is None:
            return
        path = Path(trainer.default_root_dir) / f"nonfinite_batch_rank{trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in step.batch.items()}
        torch.save({"batch": batch, "global_step": step.global_step, "epoch": step.epoch}, path)
        terms = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        failure = NonFiniteLossError(
            f"the {problem} at step {step.global_step} (logged last: {terms}); the batch is in "
            f"{path}; lower the learning rate or raise gradient clipping (trainer.gradient_clip_val)"
        )
        if not before_step:  # else the weights are sound, and may be saved
            self._failure = failure
        raise failure


@torch.no_grad()
def all_finite(module: LightningModule) -> bool:
    """Whether all weights and buffers are finite; of a sharded module in all processes, which all have to call this."""
    tensors = [piece for piece in local([tensor for _, tensor in _floats(module)]) if piece.numel()]
    largest = torch._foreach_norm(tensors, float("inf")) if tensors else []
    finite = torch.stack([torch.isfinite(value) for value in largest]).all() if largest else torch.tensor(True)
    if is_sharded(module) and dist.is_initialized():
        everywhere = finite.int()
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        finite = everywhere.bool()
    return bool(finite)


def _floats(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    for tensors in (module.named_parameters(), module.named_buffers()):
        yield from ((name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point())


@dataclass
class _Step:
    """Scalars of a training step (on any device) whose finiteness is computed and fetched without waiting."""

    batch: dict[str, Any]
    global_step: int
    epoch: int
    values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._finite: dict[str, Tensor] = {}
        self._fetched: torch.cuda.Event | None = None

    def add(self, name: str, value: Tensor) -> None:
        self.values[name] = value
        finite = torch.isfinite(value).all()
        if value.device.type == "cuda":
            # Waiting for the stream would wait for the step that has been queued since.
            on_host = torch.empty((), dtype=torch.bool, pin_memory=True)
            on_host.copy_(finite, non_blocking=True)
            finite, self._fetched = on_host, torch.cuda.Event()
            self._fetched.record()
        self._finite[name] = finite

    def problem(self) -> str | None:
        """ "loss is nan", or None if all is finite."""
        if self._fetched is not None:
            self._fetched.synchronize()
        bad = [name for name, finite in self._finite.items() if not finite]
        return f"{bad[0]} is {float(self.values[bad[0]]):g}" if bad else None
