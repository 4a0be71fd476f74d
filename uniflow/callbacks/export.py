"""The tokenizer's folder at the end of a run, and the test results on its card."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.callbacks.hooks import tokenizer_of
from uniflow.sharding.shard import full_state_dict
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.card import model_card, read_run, write_card
from uniflow.tokenizer.saving import WEIGHTS_NAME, read_tensors, without_adapters
from uniflow.training.trainer import is_dry_run


class TokenizerExport(Callback):
    """Writes `RUN/tokenizer/` when fit ends, ready for `Tokenizer.from_pretrained`; with EMA, the averaged weights.

    Its card, README.md, shows the run's recipe. If `RUN/tokenizer` holds the very weights that `uniflow test` has
    tested, the card shows the results too.
    """

    _trained = False
    _tested = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tokenizer = tokenizer_of(pl_module)
        if tokenizer is None or is_dry_run(trainer):
            return
        weights = full_state_dict(tokenizer)  # by all processes
        run = Path(trainer.default_root_dir)
        # A finished run that was started once more has its folder, with statistics of the end of training.
        if trainer.is_global_zero and (self._trained or not (run / "tokenizer").exists()):
            recipe, _ = read_run(run)
            card = {"recipe": recipe}
            tokenizer.save_pretrained(run / "tokenizer", state_dict=weights, model_card_kwargs=card)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, because the weights are still those that were tested: at the end of the test EMA takes its average out.
        tokenizer = tokenizer_of(pl_module)
        writes = trainer.is_global_zero and not is_dry_run(trainer)
        folder = Path(trainer.default_root_dir) / "tokenizer"
        self._tested = writes and tokenizer is not None and _holds(folder, tokenizer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not at the end of the test: by now all callbacks have written what the card shows.
        tokenizer = tokenizer_of(pl_module)
        if stage == "test" and self._tested and tokenizer is not None:
            self._tested = False
            run = Path(trainer.default_root_dir)
            write_card(run / "tokenizer", model_card(tokenizer.parts, *read_run(run)))


def _holds(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether the folder's weights are those of `tokenizer`; False if it is sharded, since one process cannot tell."""
    if not (folder / WEIGHTS_NAME).is_file():
        return False
    tested, saved = tokenizer.state_dict(), read_tensors(folder / WEIGHTS_NAME)
    if any(hasattr(value, "full_tensor") for value in tested.values()):
        return False
    _, tested = without_adapters(tokenizer.config(), {name: value.cpu() for name, value in tested.items()})
    return tested.keys() == saved.keys() and all(torch.equal(tested[name], saved[name]) for name in tested)
