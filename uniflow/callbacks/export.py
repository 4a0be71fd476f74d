"""The tokenizer's folder at the end of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.tasks.tokenizer import TokenizerTask


class TokenizerExport(Callback):
    """Writes `RUN/tokenizer/` when fit ends, ready for `Tokenizer.from_pretrained`; with EMA, the averaged weights."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, TokenizerTask) and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            pl_module.tokenizer.save_pretrained(Path(trainer.default_root_dir) / "tokenizer")
