"""Test results as a file, and on the card of the tokenizer that was tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.core.atomic import replacing
from uniflow.metrics import slice_means, write_table
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.card import model_card, read_run, write_card
from uniflow.tokenizer.saving import WEIGHTS_NAME, read_tensors, without_adapters


class ResultsFile(Callback):
    """Writes the metrics of `uniflow test` to `RUN/test_results.json`, of each image to `RUN/test_images.csv`, and of
    slices of the images to `RUN/test_slices.csv`.

    The results carry the protocol's fingerprint: numbers with different fingerprints are not comparable.

    If `RUN/tokenizer` holds the very weights that were tested, its card shows the results, too.
    """

    _exported = False

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, because the weights are still those that were tested: at the end of the test EMA takes its average out.
        folder = Path(trainer.default_root_dir) / "tokenizer"
        writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]  # set at run time
        self._exported = writes and isinstance(pl_module, TokenizerTask) and _holds(folder, pl_module.tokenizer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            return
        run = Path(trainer.default_root_dir)
        results: dict[str, Any] = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        if isinstance(pl_module, TokenizerTask):
            results["protocol/fingerprint"] = pl_module.fingerprint()
            results["protocol/settings"] = pl_module.evaluation_settings
        if isinstance(pl_module, TokenizerTask):
            rows = pl_module.evaluation.rows
            for name, table in (("images", rows), ("slices", slice_means(rows))):
                with replacing(run / f"test_{name}.csv") as new:
                    write_table(table, new)
        with replacing(run / "test_results.json") as new:
            new.write_text(json.dumps(results, indent=2) + "\n")
        if self._exported and isinstance(pl_module, TokenizerTask):
            write_card(run / "tokenizer", model_card(pl_module.tokenizer.parts, *read_run(run)))


def _holds(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether the folder's weights are those of `tokenizer`; False if it is sharded, since one process cannot tell."""
    if not (folder / WEIGHTS_NAME).is_file():
        return False
    own, saved = tokenizer.state_dict(), read_tensors(folder / WEIGHTS_NAME)
    if any(hasattr(value, "full_tensor") for value in own.values()):
        return False
    _, own = without_adapters(tokenizer.config(), {name: value.cpu() for name, value in own.items()})
    return own.keys() == saved.keys() and all(torch.equal(own[name], saved[name]) for name in own)
