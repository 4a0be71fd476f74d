"""What benchmarks/real.py has `uniflow fit` write down: the PSNR before the first step, and how long a step takes."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from uniflow.core.atomic import replacing
from uniflow.evaluation.judging import judge_batch
from uniflow.metrics import Evaluation, ReconstructionProtocol
from uniflow.tasks import TokenizerTask
from uniflow.training.trainer import evaluation_mode

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
        found = {"psnr": judged(trainer, pl_module, "test")}
        with replacing(file) as new:
            new.write_text(json.dumps(found) + "\n")


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


class Progress(Callback):
    """Writes down PSNR of validation against seconds of training, without those of validation, images and GFLOP.

    Seconds by the clock ("wall"), and of the CPU time of this process, without workers ("cpu"). GFLOP are those of
    matrix products, convolutions and attention that were run.

    The first entry is of the start, before any step: RUN/progress.json.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []
        self.images = 0
        self.spent, self.since = np.zeros(2), np.zeros(2)
        self.flop = 0
        self.counter: FlopCounterMode | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        _count_attention()
        self._go_on()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.entries:  # not when fit starts: the task's own start comes after the callbacks'
            self._pause()
            self._add(trainer, judged(trainer, pl_module, "val"))
            self._go_on()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch["image"]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._add(trainer, trainer.callback_metrics["val/psnr"].item())
        self._go_on()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._pause()

    def _go_on(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()
        self.since = _now()

    def _pause(self) -> None:
        if self.counter is not None:
            self.spent += _now() - self.since
            self.counter.__exit__(None, None, None)
            self.flop += self.counter.get_total_flops()
            self.counter = None

    def _add(self, trainer: Trainer, decibel: float) -> None:
        wall, cpu = self.spent.tolist()
        seen = {"images": self.images, "gflop": self.flop / 1e9}
        self.entries.append({"wall": wall, "cpu": cpu, **seen, "psnr": decibel})
        with replacing(Path(trainer.default_root_dir) / "progress.json") as new:
            new.write_text(json.dumps(self.entries) + "\n")


def _count_attention() -> None:
    """Let torch's counter count attention's kernel for CPUs, too."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    if forward not in flop_registry:
        register_flop_formula(forward)(lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v))
        register_flop_formula(backward)(lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v))


def _now() -> np.ndarray:
    """Seconds by the clock, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


def judged(trainer: Trainer, task: TokenizerTask, split: str) -> float:
    """PSNR in dB of a split, one step, by the protocol of `uniflow test`."""
    protocol = ReconstructionProtocol(images=["psnr"], sets=[], features=[], noise_seed=task.protocol.noise_seed)
    evaluation = Evaluation(protocol, with_sets=False)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
    with torch.no_grad(), evaluation_mode(task), trainer.precision_plugin.forward_context():
        for batch in getattr(data, f"{split}_dataloader")():
            images = batch["image"].to(task.device)
            judge_batch(evaluation, task.tokenizer, images, task.tokenizer.encode(images))
    return evaluation.compute()["psnr"]


def read_start(run: Path) -> float | None:
    """PSNR in dB before the first step of the run in the folder; None of a run that did not begin here."""
    file = run / START
    return json.loads(file.read_text())["psnr"] if file.is_file() else None


def read_seconds_per_step(run: Path) -> float:
    """The median step of a run with `StepSeconds`."""
    return json.loads((run / SECONDS).read_text())["median"]
