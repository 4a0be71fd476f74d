"""What a run has done is saved, whatever fails beside it or after it."""

import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from uniflow.callbacks import statistics
from uniflow.core.atomic import replacing
from uniflow.core.disk import NoSpaceError, mount_point

FIT = ("fit", "-c", "recipe.yaml", "--trainer.max_steps", "2", "--run", "runs/a")
FAILING = """
from lightning.pytorch import Callback

class Failing(Callback):
    def on_train_end(self, trainer, pl_module):
        raise KeyError("a callback of someone else")
"""
Usage = namedtuple("Usage", "total used free")


def last_step():
    return torch.load("runs/a/last.ckpt", weights_only=True)["global_step"]


def test_statistics_that_fail_cost_nothing_else(uniflow, project, monkeypatch):
    def fail(*args):
        raise RuntimeError("no latents today")

    monkeypatch.setattr(statistics, "measure", fail)
    with pytest.warns(UserWarning, match="measuring the latent statistics failed: RuntimeError: no latents today"):
        result = uniflow(*FIT)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert "no latents today" in Path("runs/a/error.log").read_text()
    assert last_step() == 2
    assert Path("runs/a/tokenizer/model.safetensors").is_file()


def test_the_last_steps_are_saved_before_anything_else_can_fail(uniflow, project):
    (project / "failing_callback.py").write_text(FAILING)
    result = uniflow(*FIT, "--trainer.callbacks", "failing_callback.Failing", "--checkpoint.every_n_epochs", "100")
    assert result.code == 1
    assert "KeyError: 'a callback of someone else' (trace: runs/a/error.log); the run is in runs/a" in result.error
    assert "on_train_end" in Path("runs/a/error.log").read_text()
    assert last_step() == 2


def test_a_fit_says_where_its_work_lies_and_a_full_disk_leaves_it(uniflow, project, monkeypatch):
    result = uniflow(*FIT)
    assert "runs/a: tokenizer, best.ckpt, last.ckpt; test it with: uniflow test -c runs/a/config.yaml" in result.err
    assert "latent_statistics" in torch.load("runs/a/last.ckpt", weights_only=True)["tokenizer"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 4096))
    more = [*FIT, "--trainer.max_steps", "4", "--ckpt_path", "last"]
    result = uniflow(*more)
    assert result.code == 74
    assert f"no space left on {mount_point(Path('runs'))}, 1 MB needed" in result.error
    assert last_step() == 2
    assert not list(Path("runs/a").glob("*.part"))


def test_a_library_that_fails_on_a_full_disk_is_understood(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="unexpected pos"), replacing(tmp_path / "file"):
        raise RuntimeError("unexpected pos 64 vs 0")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    with pytest.raises(NoSpaceError, match="no space left on"), replacing(tmp_path / "file"):
        raise RuntimeError("unexpected pos 64 vs 0")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield disk
    subprocess.run(["umount", disk], check=False)


def test_a_disk_that_is_really_full(uniflow, project, small_disk):
    assert uniflow(*FIT).code == 0
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"0" * (free - 65536))
    official = Path(__file__).parents[1] / "fixtures" / "official_tiny"
    for command in (
        ["fit", "-c", "recipe.yaml", "--trainer.max_steps", "1", "--run", f"{small_disk}/run"],
        ["convert", "to-official", str(official), f"{small_disk}/out"],
        ["consolidate", "runs/a/last.ckpt", f"{small_disk}/out"],
        ["export", "runs/a/tokenizer", f"{small_disk}/out"],
    ):
        result = uniflow(*command)
        assert result.code != 0, command
        if command[0] != "convert":
            assert result.code == 74, (command, result.err)
            assert f"no space left on {small_disk}" in result.error
        assert not list(small_disk.rglob("*.part")), command


WORKER_KILLER = """
import multiprocessing, os, signal
import torch
from lightning.pytorch import Callback

class KillWorker(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

class OutOfMemory(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            torch.empty(2**60, dtype=torch.uint8)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "text", "code"),
    [("KillWorker", "killed by signal: Killed", 1), ("OutOfMemory", "can't allocate memory", 1)],
)
def test_a_killed_worker_and_too_little_memory_are_one_line(uniflow, project, callback, text, code):
    (project / "killers.py").write_text(WORKER_KILLER)
    options = ["--trainer.callbacks", f"killers.{callback}", "--checkpoint.every_n_train_steps", "1"]
    options += ["--trainer.max_steps", "2000", "--data.num_workers", "1", "--data.train_length", "4000"]
    result = uniflow("fit", "-c", "recipe.yaml", "--run", "runs/a", *options)
    assert result.code == code, result.err
    assert text in result.error
    assert "go on with: uniflow fit -c runs/a/config.yaml --ckpt_path last" in result.error
    assert last_step() >= 2
