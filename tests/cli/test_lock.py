"""One writer for each run folder: a second fit is refused and disturbs nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import start

LOCKER = """
import sys, time
from pathlib import Path
from uniflow.core.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held" if lock.acquire() is None else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", LOCKER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("resume", [[], ["--ckpt_path", "auto"]])
def test_a_second_fit_is_refused_and_touches_nothing(holder, uniflow, project, tmp_path, resume):
    run = tmp_path / "run"
    (run / "last.ckpt.part").write_bytes(b"being written")
    before = sorted(path.name for path in run.iterdir())
    result = uniflow("fit", "-c", "recipe.yaml", "--run", str(run), *resume)
    assert result.code == 2
    assert f"{run} is being written by process {holder.pid} on {os.uname().nodename}" in result.error
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_lock_goes_with_its_process(holder, uniflow, project, tmp_path):
    holder.kill()
    holder.wait()
    result = uniflow("fit", "-c", "recipe.yaml", "--run", str(tmp_path / "run"), "--trainer.max_steps", "1")
    assert result.code == 0, result.err


def test_of_two_that_start_together_one_runs(project):
    words = ["fit", "-c", "recipe.yaml", "--run", "runs/both", "--trainer.max_steps", "400"]
    logs = {start(*words, log=name): Path(name) for name in ("one", "other")}
    deadline = time.monotonic() + 120
    while all(process.is_alive() for process in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused, running = sorted(logs, key=lambda process: process.is_alive())
    assert refused.exitcode == 2
    assert f"is being written by process {running.pid} on" in logs[refused].read_text()
    running.kill()
    running.join()


@pytest.mark.parametrize("option", [["--data.batch_size", "0"], ["--model.init_from", "no.ckpt"]])
def test_a_refused_fit_leaves_no_folder(uniflow, project, option):
    result = uniflow("fit", "-c", "recipe.yaml", "--run", "runs/new", *option)
    assert result.code == 2
    assert not Path("runs/new").exists()
