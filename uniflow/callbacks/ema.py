"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from uniflow.core.numbers import CheckedNumbers, UnitFloatBelow1
from uniflow.layers.precision import full_dtype
from uniflow.sharding.shard import local, reshard


class EMA(CheckedNumbers, Callback):
    """Averages the trained parameters after each optimizer step; validation, test and export use the average.

    avg <- d avg + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after n steps, so that a short run is not stuck
    with its start. Averages are kept in float32 at least: in bfloat16 a step of the average would be rounded away. They
    are in the checkpoint under "ema", by parameter name.

    Args:
        decay: between 0 (no averaging: the callback does nothing) and 1.

    Raises:
        ValueError: for a decay outside [0, 1), or a checkpoint whose averages do not fit the model.
    """

    def __init__(self, decay: UnitFloatBelow1 = 0.999) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._raw: list[Tensor] | None = None
        self._last_step = 0
        self._begun = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not before: a task may set its first weights when training starts.
        if self._begun:
            return
        self._begun = True
        loaded = self.average
        self.average = {}
        if self.decay == 0:
            return
        reshard(pl_module)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                source = loaded.get(name, parameter.detach())
                self.average[name] = source.to(parameter.device, full_dtype(parameter.dtype), copy=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step or not self.average:  # gradients are still being accumulated
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        averages = local(self.average.values())
        weights = [w.to(a.dtype) for w, a in zip(local(self._parameters(pl_module)), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here on the module is the average: what is exported and used after fit.
        self._swap_in(pl_module)
        self._raw = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.average:
            return
        if self._raw is not None:  # saved during validation: the module holds the average, the checkpoint needs both
            names = list(self.average)
            checkpoint["state_dict"].update(zip(names, self._raw, strict=True))
        checkpoint["ema"] = dict(self.average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.decay > 0 and checkpoint.get("ema"):
            self.average = dict(checkpoint["ema"])
            self._check(pl_module, whole=trainer.state.fn == TrainerFn.FITTING)

    def _check(self, pl_module: LightningModule, whole: bool) -> None:
        """Refuse averages of other parameters; if `whole`, also if one of a trained parameter is missing."""
        reshard(pl_module)
        parameters = dict(pl_module.named_parameters())
        problems = [f"{name} is not a parameter" for name in self.average if name not in parameters]
        problems += [
            f"{name} is {tuple(average.shape)}, not {tuple(parameters[name].shape)}"
            for name, average in self.average.items()
            if name in parameters and average.shape != parameters[name].shape
        ]
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        problems += [f"{name} is missing" for name in trained if whole and name not in self.average]
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"the averages (ema) of the checkpoint do not fit the model: {'; '.join(problems[:3])}{more}"
            )

    def _parameters(self, pl_module: LightningModule) -> list[Tensor]:
        reshard(pl_module)
        by_name = dict(pl_module.named_parameters())
        return [by_name[name].data for name in self.average]

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        if not self.average or self._raw is not None:
            return
        parameters = self._parameters(pl_module)
        self._raw = [p.clone() for p in parameters]
        averages = [a.to(p.device) for a, p in zip(self.average.values(), parameters, strict=True)]
        torch._foreach_copy_(local(parameters), local(averages))

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is None:
            return
        torch._foreach_copy_(local(self._parameters(pl_module)), local(self._raw))
        self._raw = None
