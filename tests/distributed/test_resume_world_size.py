"""Processes that stop together, and a run that goes on with another number of them."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tiny import REGRESSION, fit, tiny_scenes, tiny_task

from uniflow.callbacks import Preemption


class Record(Callback):
    """Appends a digest of each picture that this rank trains on to FOLDER/rankR, a line a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in batch["image"]]
        with open(self.folder / f"rank{trainer.global_rank}", "a") as file:
            file.write(" ".join(digests) + "\n")


class SignalAt(Callback):
    """Sends rank 1 SIGUSR1 in the middle of its batch number `batch`."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if trainer.global_rank == 1 and trainer.fit_loop.batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGUSR1)


def run(folder: Path, processes: int, batch: int, callbacks: list[Callback], ckpt: Path | None = None) -> list[str]:
    """Train an epoch of 64 pictures; returns the digests of what all ranks were trained on."""
    folder.mkdir()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    options = {"strategy": strategy, "devices": processes, "enable_checkpointing": bool(callbacks), "ckpt_path": ckpt}
    task, data = tiny_task(decoder=REGRESSION), tiny_scenes(batch_size=batch)
    fit(task, data, folder, steps=8, callbacks=[Record(folder), *callbacks], **options)
    return digests(folder)


def digests(folder: Path) -> list[str]:
    return [digest for file in folder.glob("rank*") for digest in file.read_text().split()]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that a signal to one of them has stopped at step 3, of 8 samples each."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Exception, match="stopped by SIGUSR1 after step 3"):
        run(folder, 2, 4, [Preemption(), SignalAt(2)])
    return folder


def test_both_stop_at_the_same_step(stopped: Path) -> None:
    assert [len((stopped / f"rank{rank}").read_text().splitlines()) for rank in range(2)] == [3, 3]
    checkpoint = torch.load(stopped / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert checkpoint["Scenes"] == {"epoch": 0, "samples": 24, "batch_size": 4, "seed": 0, "world_size": 2}


@pytest.mark.parametrize(("processes", "batch"), [(1, 8), (1, 5), (4, 2)])
def test_the_rest_of_the_epoch_on_other_processes(stopped: Path, tmp_path: Path, processes: int, batch: int) -> None:
    rest = run(tmp_path / "rest", processes, batch, [], stopped / "last.ckpt")[:40]
    first = digests(stopped)
    if batch != 5:  # a global batch as before: the 8 steps are the epoch
        whole = run(tmp_path / "whole", 1, 8, [])
        assert Counter(first + rest) == Counter(whole)
    assert len(set(first + rest)) == len(first + rest) == 24 + min(40, 5 * processes * batch)


def test_from_one_process_to_two(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = run(tmp_path / "one", 1, 8, [saver])
    rest = run(tmp_path / "two", 2, 4, [], tmp_path / "step=5.ckpt")
    assert Counter(rest) == Counter(whole[40:])
