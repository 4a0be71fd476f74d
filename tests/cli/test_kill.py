"""`kill -9` in the middle of training: the run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(sys.executable).parent / "uniflow"
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
    process = subprocess.Popen(
        [SCRIPT, "fit", *options, "--trainer.max_steps", "1000", "--run", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (killed / "last.ckpt").exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    import torch

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
