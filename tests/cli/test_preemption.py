"""A signal stops a run after the step at hand, with its state saved; `--ckpt_path auto` goes on as if nothing were."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from uniflow.callbacks import Preemption
from uniflow.cli.app import callback_options

Uniflow = Callable[..., Any]
FIT = (
    "fit",
    "-c",
    "recipe.yaml",
    "--trainer.max_steps",
    "6",
    "--data.train_length",
    "20",
    "--model.optimizer.lr",
    "1e-3",
)
STOP = ("--trainer.callbacks", "signalling.SignalAt", "--trainer.callbacks.batch")
SIGNALLING = '''
import os, signal
from lightning.pytorch import Callback

class SignalAt(Callback):
    """Sends this process a signal in the middle of a batch, or in a validation (batch -1)."""
    def __init__(self, batch: int, name: str = "SIGTERM") -> None:
        self.batch, self.name = batch, name
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.Signals[self.name])
    def on_validation_start(self, trainer, pl_module):
        if self.batch == -1:
            os.kill(os.getpid(), signal.Signals[self.name])
'''


@pytest.fixture
def signalling(project: Path) -> None:
    (project / "signalling.py").write_text(SIGNALLING)


def last(run: str) -> dict[str, Any]:
    return torch.load(f"runs/{run}/last.ckpt", weights_only=True)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    ("options", "step", "steps"),
    [((), 3, 6), (("--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "4"), 2, 4)],
)
def test_stop_and_go_on(uniflow: Uniflow, signalling: None, options: tuple[str, ...], step: int, steps: int) -> None:
    """Into the second epoch, whose batches come in another order."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    assert uniflow(*FIT, *options, "--run", "runs/whole").code == 0
    assert (
        "has no last.ckpt"
        in (result := uniflow(*FIT, *options, *STOP, "3", "--run", "runs/a", "--ckpt_path", "auto")).err
    )
    assert result.code == 75, result.err
    assert f"stopped by SIGTERM after step {step}; the state is saved in runs/a/last.ckpt" in result.err
    assert "go on with: uniflow fit -c runs/a/config.yaml --ckpt_path last" in result.err
    assert "Traceback" not in result.err
    assert last("a")["global_step"] == step
    assert last("a")["Scenes"]["samples"] == 4 * step * (2 if options else 1)
    assert not Path("runs/a/tokenizer").exists()
    assert {number: signal.getsignal(number) for number in handlers} == handlers

    result = uniflow(*FIT, *options, "--run", "runs/a", "--ckpt_path", "auto")
    assert result.code == 0, result.err
    whole, resumed = last("whole"), last("a")
    assert resumed["global_step"] == steps
    for key in ("state_dict", "ema"):
        assert equal(resumed[key], whole[key]), key
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert resumed["Scenes"] == whole["Scenes"]
    for name in ("tokenizer/config.json", "tokenizer/model.safetensors"):
        assert Path("runs/a", name).read_bytes() == Path("runs/whole", name).read_bytes()


def test_in_a_validation_and_by_another_signal(uniflow: Uniflow, signalling: None) -> None:
    options = ("--trainer.callbacks.name", "SIGUSR1", "--run", "runs/a")
    assert uniflow(*FIT, *STOP, "-1", *options).code == 75  # the recipe validates every second step
    assert last("a")["global_step"] == 2
    options = ("--trainer.callbacks.name", "SIGUSR2", "--preemption.signals", "[SIGUSR2]", "--run", "runs/b")
    assert uniflow(*FIT, *STOP, "3", *options, "--preemption.check_every", "4").code == 75
    assert last("b")["global_step"] == 4


def test_ctrl_c_once_saves_and_says_how_to_go_on(uniflow: Uniflow, signalling: None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    result = uniflow(*FIT, *STOP, "3", "--trainer.callbacks.name", "SIGINT", "--run", "runs/a")
    assert result.code == 130, result.err
    assert "stopped by Ctrl-C after step 3; the state is saved in runs/a/last.ckpt" in result.err
    assert "go on with: uniflow fit -c runs/a/config.yaml --ckpt_path last" in result.err
    assert last("a")["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) == handler
    assert uniflow("fit", "-c", "runs/a/config.yaml", "--ckpt_path", "last", "--trainer.callbacks", "null").code == 0


def test_ctrl_c_twice_stops_at_once(uniflow: Uniflow, project: Path) -> None:
    twice = SIGNALLING.replace("os.kill(", "os.kill(os.getpid(), signal.Signals[self.name]); os.kill(", 1)
    (project / "signalling_twice.py").write_text(twice)
    stop = [word.replace("signalling.", "signalling_twice.") for word in STOP]
    result = uniflow(*FIT, *stop, "3", "--trainer.callbacks.name", "SIGINT", "--run", "runs/a")
    assert result.code == 130, result.err
    assert "Ctrl-C again stops at once" in result.err
    assert "interrupted" in result.err
    assert not Path("runs/a/last.ckpt").exists() or last("a")["global_step"] == 2


def test_the_last_step_is_not_interrupted(uniflow: Uniflow, signalling: None) -> None:
    assert uniflow(*FIT, *STOP, "6", "--run", "runs/a").code == 0
    tokenizer = [Path("runs/a/tokenizer", name).read_bytes() for name in ("config.json", "model.safetensors")]
    # A job that is started once more than it needs to be.
    assert uniflow(*FIT, "--run", "runs/a", "--ckpt_path", "auto").code == 0
    assert tokenizer == [Path("runs/a/tokenizer", name).read_bytes() for name in ("config.json", "model.safetensors")]


def test_lightning_neither_saves_nor_requeues_on_slurm(
    uniflow: Uniflow, signalling: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "scontrol").write_text("#!/bin/sh\ntouch requeued\n")
    (project / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:{os.environ['PATH']}")
    values = {"NTASKS": "1", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "a"}
    for name, value in {**values, "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = ("--trainer.callbacks.name", "SIGUSR1", "--run", "runs/a")
    assert uniflow(*FIT, *STOP, "3", *options).code == 75
    assert last("a")["global_step"] == 3
    assert not list(Path("runs/a").glob("hpc_ckpt*"))
    assert not (project / "requeued").exists()


def test_auto_is_refused_where_it_means_nothing(uniflow: Uniflow) -> None:
    assert "name the folder that all attempts share" in uniflow(*FIT, "--ckpt_path", "auto").error
    assert "auto is for fit" in uniflow("test", *FIT[1:3], "--run", "runs/a", "--ckpt_path", "auto").error


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="'SIGNOTHING' is not a signal of this system"):
        Preemption(["SIGNOTHING"])
    with pytest.raises(ValueError, match="check_every must be an integer >= 1 or null, got 0"):
        Preemption(check_every=0)
    # Of those callbacks that Lightning runs last of all: after those that change what is saved, such as EMA.
    assert issubclass(callback_options()["preemption"], Checkpoint)
