"""`kill -9` of two processes that share one model: one process goes on from their checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import start
from parallel import needs_sharding
from test_kill import OPTIONS, logged_losses

from uniflow import Tokenizer
from uniflow.sharding.checkpoint import INDEX_NAME, META_NAME, is_sharded_checkpoint, read_meta

SHARDED = [*OPTIONS, "--trainer.strategy", "fsdp2", "--checkpoint.every_n_train_steps", "5"]
END = ["--trainer.max_steps", "1000", "--trainer.callbacks", "my_pkg.StopAt", "--trainer.callbacks.step"]


@needs_sharding
def test_kill_and_resume_sharded(project: Path, uniflow: Callable[..., Any]) -> None:
    run = Path("runs/killed")
    process = start(
        "fit", *SHARDED, "--trainer.devices", "2", "--trainer.max_steps", "1000", "--run", str(run), log="killed.log"
    )
    try:
        deadline = time.monotonic() + 240
        while not is_sharded_checkpoint(run / "last.ckpt"):
            assert process.is_alive(), Path("killed.log").read_text()
            assert time.monotonic() < deadline, "no checkpoint within four minutes"
            time.sleep(0.05)
    finally:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    at = read_meta(run / "last.ckpt")["global_step"]
    assert at % 5 == 0
    result = uniflow("fit", *SHARDED, *END, str(at + 4), "--run", str(run), "--ckpt_path", "last")
    assert result.code == 0, result.err
    assert set(range(at, at + 4)) <= logged_losses(run).keys()
    tokenizer = Tokenizer.from_pretrained(run / "last.ckpt")
    assert tokenizer.config()["encoder"] == Tokenizer.from_pretrained(run / "tokenizer").config()["encoder"]
    result = uniflow("test", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "last",
                     "--trainer.strategy", "auto", "--trainer.devices", "1")  # fmt: skip
    assert result.code == 0, result.err


@pytest.mark.parametrize("strategy", ["fsdp2", "auto"])
def test_a_folder_that_is_no_checkpoint(project: Path, uniflow: Callable[..., Any], strategy: str) -> None:
    Path("empty.ckpt").mkdir()
    result = uniflow("test", *OPTIONS, "--trainer.strategy", strategy, "--ckpt_path", "empty.ckpt")
    assert result.code == 2
    assert "empty.ckpt is not a checkpoint" in result.err


def test_a_sharded_run_needs_the_strategy_to_go_on(project: Path, uniflow: Callable[..., Any]) -> None:
    folder = Path("last.ckpt")
    folder.mkdir()
    for name in (META_NAME, INDEX_NAME):
        (folder / name).touch()
    result = uniflow("fit", *OPTIONS, "--ckpt_path", str(folder))
    assert result.code == 2
    assert "--trainer.strategy fsdp2" in result.err
