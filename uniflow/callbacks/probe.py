"""Linear probes of teacher and student at test time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from uniflow.metrics import linear_probe
from uniflow.tasks.tokenizer import TokenizerTask


class LinearProbe(Callback):
    """At the end of `uniflow test`: what a linear classifier reads from teacher, student and latents.

    The features are the mean patch token of the last block, and the mean latent. The classifier is fitted on the
    validation split and scored on the test split; training saw neither. Data without labels is not probed.

    Args:
        max_images: at most so many images of each split and process; 0 switches the probe off.
    """

    def __init__(self, max_images: int = 10_000) -> None:
        self.max_images = max_images

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
        if not isinstance(pl_module, TokenizerTask) or data is None or self.max_images < 1:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        fitted_on = self._features(pl_module, data.val_dataloader())
        scored_on = self._features(pl_module, data.test_dataloader())
        if not fitted_on or not scored_on:
            rank_zero_info("the data has no labels: no linear probe")
            return
        for name in ("teacher", "student", "latent"):
            accuracy = linear_probe(fitted_on[name], fitted_on["label"], scored_on[name], scored_on["label"])
            pl_module.log(f"test/probe_{name}", accuracy, rank_zero_only=True)

    @torch.no_grad()
    def _features(self, task: TokenizerTask, loader: Iterable[Any]) -> dict[str, Tensor]:
        """Mean patch tokens and labels of all processes together; empty if there are no labels."""
        found: dict[str, list[Tensor]] = {"teacher": [], "student": [], "latent": [], "label": []}
        count = 0
        for batch in loader:
            if "label" not in batch:
                return {}
            images = batch["image"].to(task.device)
            with task.trainer.precision_plugin.forward_context():
                student, teacher = task.tokenizer.encoder(images), task.teacher(images)
                latents, _ = task.tokenizer.bottleneck(student.feature_map())
            found["teacher"].append(teacher.hidden_states[-1].float().mean(dim=1).cpu())
            found["student"].append(student.hidden_states[-1].float().mean(dim=1).cpu())
            found["latent"].append(latents.float().mean(dim=(2, 3)).cpu())
            found["label"].append(batch["label"].cpu())
            count += len(images)
            if count >= self.max_images:
                break
        own = {name: torch.cat(parts) for name, parts in found.items()} if count else {}
        return _gather(own)


def _gather(own: dict[str, Tensor]) -> dict[str, Tensor]:
    if not torch.distributed.is_initialized():
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    filled = [part for part in everyone if part]
    return {name: torch.cat([part[name] for part in filled]) for name in filled[0]} if filled else {}
