"""`kill -9` in the middle of training: the run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OPTIONS = ["-c", "recipe.yaml", "--model.optimizer.lr", "1e-3", "--trainer.precision", "bf16-mixed"]
OPTIONS += ["--data.train_length", "40", "--data.val_length", "8", "--trainer.val_check_interval", "1000000"]
EVERY = 7  # steps between checkpoints: in the middle of an epoch of 10


def logged_losses(run: Path) -> dict[int, float]:
    """Step -> training loss, the latest written."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def test_kill_and_resume(project: Path, uniflow: Callable[..., Any]) -> None:
    options = [*OPTIONS, "--checkpoint.every_n_train_steps", str(EVERY)]
    killed = Path("runs/killed")
    process = start("fit", *options, "--trainer.max_steps", "1000", "--run", str(killed))
    try:
        deadline = time.monotonic() + 120
        while not (killed / "last.ckpt").exists():
            assert process.is_alive(), "the run ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    at = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
    assert at % EVERY == 0
    # The schedule depends on the length of training, so the resumed run keeps it and stops by time alone.
    end = ["--trainer.max_steps", "1000", "--trainer.callbacks", "my_pkg.StopAt", "--trainer.callbacks.step"]
    result = uniflow("fit", *options, *end, str(at + 12), "--run", str(killed), "--ckpt_path", "last")
    assert result.code == 0, result.err
    result = uniflow("fit", *options, *end, str(at + 12), "--run", "runs/whole")
    assert result.code == 0, result.err
    whole, resumed = logged_losses(Path("runs/whole")), logged_losses(killed)
    after = range(at, at + 12)
    assert [resumed[step] for step in after] == [whole[step] for step in after]
