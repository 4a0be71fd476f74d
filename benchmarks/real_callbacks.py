"""What benchmarks/real.py has `uniflow fit` write down: the PSNR before the first step, and how long a step takes."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from uniflow.core.atomic import replacing
from uniflow.evaluation.judging import judge_batch
from uniflow.metrics import Evaluation, ReconstructionProtocol
from uniflow.tasks import TokenizerTask

START, SECONDS = "start.json", "seconds_per_step.json"
UNTIMED = 3  # first steps, which allocate


class StartPSNR(Callback):
    """Judges the tokenizer on the test split before the first step of a run, by the protocol of `uniflow test`.

    Before the first batch, not when fit starts: whatever the task does to the tokenizer as its start has been done.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        file = Path(trainer.default_root_dir) / START
        if trainer.global_step > 0 or file.exists() or not isinstance(pl_module, TokenizerTask):
            return
        pl_module.eval()
        protocol = ReconstructionProtocol(
            images=["psnr"], sets=[], features=[], noise_seed=pl_module.protocol.noise_seed
        )
        evaluation = Evaluation(protocol, with_sets=False)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for test_batch in data.test_dataloader():
                images = test_batch["image"].to(pl_module.device)
                judge_batch(evaluation, pl_module.tokenizer, images, pl_module.tokenizer.encode(images))
        pl_module.train()
        with replacing(file) as new:
            new.write_text(json.dumps({"psnr": evaluation.compute()["psnr"]}) + "\n")


class StepSeconds(Callback):
    """Times the steps of a short run, reading of the data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        ends = self.ends[min(UNTIMED, len(self.ends) - 2) :]
        seconds = statistics.median(after - before for before, after in itertools.pairwise(ends))
        with replacing(Path(trainer.default_root_dir) / SECONDS) as new:
            new.write_text(json.dumps({"median": seconds}) + "\n")


def read_start(run: Path) -> float | None:
    """PSNR in dB before the first step of the run in the folder; None of a run that did not begin here."""
    file = run / START
    return json.loads(file.read_text())["psnr"] if file.is_file() else None


def read_seconds_per_step(run: Path) -> float:
    """The median step of a run with `StepSeconds`."""
    return json.loads((run / SECONDS).read_text())["median"]
