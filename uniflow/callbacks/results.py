"""Test results as a file."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class ResultsFile(Callback):
    """Writes the metrics of `uniflow test` to `RUN/test_results.json`."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            results = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
            path = Path(trainer.default_root_dir) / "test_results.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=2) + "\n")
