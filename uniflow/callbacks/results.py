"""Test results as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.callbacks.hooks import hooks_of
from uniflow.core.atomic import replacing
from uniflow.metrics import write_table
from uniflow.training.trainer import is_dry_run


class ResultsFile(Callback):
    """Writes the metrics of `uniflow test` to `RUN/test_results.json`, with what the task's `report` says, and the
    task's `report_tables` to `RUN/test_NAME.csv`: of a tokenizer one row for each image and for slices of the images.

    A tokenizer's results carry the protocol's fingerprint: numbers with different fingerprints are not comparable.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        run, task = Path(trainer.default_root_dir), hooks_of(pl_module)
        results: dict[str, Any] = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        results |= task.report() if task else {}
        for name, table in (task.report_tables() if task else {}).items():
            with replacing(run / f"test_{name}.csv") as new:
                write_table(table, new)
        with replacing(run / "test_results.json") as new:
            new.write_text(json.dumps(results, indent=2) + "\n")
