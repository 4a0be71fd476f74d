"""The model's parts at the start of a run."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary

from uniflow.callbacks.hooks import hooks_of
from uniflow.training.trainer import data_of


class PartsSummary(RichModelSummary):
    """Prints the task's own summary, of a tokenizer parameters and GFLOP of each part, or else Lightning's."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = hooks_of(pl_module)
        size = getattr(data_of(trainer), "size", None)
        if task is None or (trainer.is_global_zero and not task.print_summary(size)):
            super().on_fit_start(trainer, pl_module)
