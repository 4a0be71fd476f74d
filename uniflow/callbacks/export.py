"""The tokenizer's folder at the end of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.sharding.shard import full_state_dict
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.tokenizer.card import read_run


class TokenizerExport(Callback):
    """Writes `RUN/tokenizer/` when fit ends, ready for `Tokenizer.from_pretrained`; with EMA, the averaged weights.

    Its card, README.md, shows the run's recipe, and no results yet: `uniflow test` adds those that it measures.
    """

    _trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TokenizerTask) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = full_state_dict(pl_module.tokenizer)  # by all processes
        run = Path(trainer.default_root_dir)
        # A finished run that was started once more has its folder, with statistics of the end of training.
        if trainer.is_global_zero and (self._trained or not (run / "tokenizer").exists()):
            recipe, _ = read_run(run)
            card = {"recipe": recipe}
            pl_module.tokenizer.save_pretrained(run / "tokenizer", state_dict=weights, model_card_kwargs=card)
