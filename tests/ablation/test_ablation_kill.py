"""`kill -9` of `uniflow ablate` and all that it has started: the same command continues.

Seven processes that import torch, so slow; with a stand-in for training: test_ablation_launch.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

PLAN = """
base: recipe.yaml
options:
  trainer.max_steps: 40
  trainer.val_check_interval: 1000000
  checkpoint.every_n_train_steps: 4
  best_checkpoint: null
  data.train_length: 160
  data.val_length: 8
  data.test_length: 8
variants:
  kept: {trainer.max_steps: 2}
  killed: {trainer.callbacks: {class_path: my_pkg.WaitAt, init_args: {step: 6}}}
metrics: {test/psnr: higher, test/cosine: higher}
"""
# Training stands still there until it is killed; the resumed run does not stop.
WAIT = """

class WaitAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        import os, time
        while trainer.global_step == self.step and not os.path.exists("go"):
            time.sleep(0.05)
"""
COMMAND = [sys.executable, "-m", "uniflow.cli", "ablate", "plan.yaml", "--out", "out"]


@pytest.mark.slow
def test_kill_and_continue(project: Path) -> None:
    with (project / "my_pkg.py").open("a") as file:
        file.write(WAIT)
    (project / "plan.yaml").write_text(PLAN)
    kept, killed = Path("out/runs/kept/seed0"), Path("out/runs/killed/seed0")
    with Path("log").open("w") as log:
        process = subprocess.Popen(COMMAND, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 900
        while not (killed / "last.ckpt").exists():
            assert process.poll() is None, Path("log").read_text()
            assert time.monotonic() < deadline, "no checkpoint within a quarter of an hour"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert torch.load(killed / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not Path("out/report.html").exists()
    assert json.loads(killed.with_name("seed0.state.json").read_text())["state"] == "running"
    before = (kept / "last.ckpt").stat().st_mtime_ns

    Path("go").touch()
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs, 1 finished before" in done.stdout
    assert (kept / "last.ckpt").stat().st_mtime_ns == before
    assert torch.load(killed / "last.ckpt", weights_only=True)["global_step"] == 40
    commands = [line for line in killed.with_name("seed0.log.txt").read_text().splitlines() if line.startswith("$")]
    assert [line.split()[2] for line in commands] == ["fit", "fit", "test"]
    assert [line.endswith("--ckpt_path last") for line in commands] == [False, True, True]
    state = json.loads(killed.with_name("seed0.state.json").read_text())
    assert state["state"] == "finished"
    text = Path("out/report.html").read_text()
    assert "2 of 2 finished" in text
    assert "<svg" in text
    assert "data:image/png;base64," in text
