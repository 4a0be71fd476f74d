"""The tokenizer's folder at the end of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.card import read_run
from uniflow.tasks.tokenizer import TokenizerTask


class TokenizerExport(Callback):
    """Writes `RUN/tokenizer/` when fit ends, ready for `Tokenizer.from_pretrained`; with EMA, the averaged weights.

    Its card, README.md, shows the run's recipe, and no results yet: `uniflow test` adds those that it measures.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, TokenizerTask) and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run = Path(trainer.default_root_dir)
            recipe, _ = read_run(run)
            pl_module.tokenizer.save_pretrained(run / "tokenizer", model_card_kwargs={"recipe": recipe})
