"""Throughput, gradient norms and learning rates in the log."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from uniflow.callbacks.hooks import tokenizer_of
from uniflow.training.trainer import is_logged_step


class Monitor(Callback):
    """Logs images/s over all processes, the gradient norm of each part before clipping, and each group's learning rate.

    Everything is measured only at steps that are logged (`trainer.log_every_n_steps`).
    """

    def __init__(self) -> None:
        self._images = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()  # time spent in validation does not count

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if is_logged_step(trainer):
            norms = {f"gradient_norm/{name}": norm for name, norm in part_gradient_norms(pl_module).items()}
            rates = {
                f"learning_rate/{group.get('name', i)}": float(group["lr"])
                for i, group in enumerate(optimizer.param_groups)
            }
            pl_module.log_dict({**norms, **rates})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A generator's batches may hold cached latents instead of images.
        self._images += len(batch["image"] if "image" in batch else batch["latent"]) * trainer.world_size
        if is_logged_step(trainer, ahead=0):
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            elapsed = time.perf_counter() - self._since
            pl_module.log("images_per_second", self._images / elapsed, prog_bar=True)
            self._restart()

    def _restart(self) -> None:
        self._images, self._since = 0, time.perf_counter()


def part_gradient_norms(module: LightningModule) -> dict[str, Tensor]:
    """The 2-norm of the gradients of each part (encoder, bottleneck, decoder of a tokenizer), and of all."""
    parts = dict((tokenizer_of(module) or module).named_children())
    norms = {}
    for name, part in parts.items():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[name] = torch.nn.utils.get_total_norm(gradients)
    if norms:
        norms["total"] = torch.stack(list(norms.values())).norm()
    return norms
