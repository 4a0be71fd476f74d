"""The model's parts at the start of a run."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary

from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.tokenizer.summary import print_summary


class PartsSummary(RichModelSummary):
    """Prints parameters and GFLOP of each part of a tokenizer, or Lightning's own summary of any other task."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TokenizerTask):
            super().on_fit_start(trainer, pl_module)
        elif trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            print_summary(pl_module.tokenizer, getattr(data, "size", None))
