"""Fixtures of the tests of ablations: a stand-in for the command `uniflow`, and finished runs without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from uniflow.ablation import launch
from uniflow.ablation.plan import Run

# Writes what `uniflow fit` and `uniflow test` write, and a line into calls.txt; `--model.mode` says how to behave.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
command, words = sys.argv[1], sys.argv[2:]
given = dict(zip(words[::2], words[1::2]))
run = Path(given["--run"])
run.mkdir(parents=True, exist_ok=True)
with open("calls.txt", "a") as file:
    threads = os.environ.get("OMP_NUM_THREADS", "-")
    print(command, run.parent.name, run.name, given.get("--ckpt_path", "-"), threads, file=file)
config = run / "config.yaml"
if command == "test":
    if json.loads(config.read_text()).get("--model.mode") == "no_results":
        sys.exit(0)
    (run / "test_results.json").write_text(json.dumps({"test/psnr": 20.0 + int(run.name[4:])}))
    sys.exit(0)
mode = given.get("--model.mode")
print("training", mode, flush=True)
if config.exists() and "--ckpt_path" not in given:
    sys.exit("uniflow: error: already holds a run")
config.write_text(json.dumps(given))
if mode == "fail":
    print("uniflow: error: \\x1b[31mit is broken\\x1b[0m")
    sys.exit(2)
(run / "last.ckpt").write_text("")
if mode == "interrupted":
    sys.exit(130)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
while mode == "slow" and not Path("go").exists():
    time.sleep(0.02)
"""


@pytest.fixture
def fake_uniflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """In a directory of its own, runs call a stand-in; gives the calls so far: command, variant, seed, checkpoint,
    threads."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-S", "-E", str(script)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "recipe.yaml").write_text("model: {}\n")

    def calls() -> list[str]:
        file = tmp_path / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    return calls


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run of the stand-in: variant, seed, mode."""

    def make(variant: str = "a", seed: int = 0, mode: str = "") -> Run:
        options: dict[str, Any] = {"model.mode": mode} if mode else {}
        return Run(variant, seed, (Path("recipe.yaml"),), options, Path("out/runs") / variant / f"seed{seed}")

    return make


@pytest.fixture
def study_folders(tmp_path: Path) -> list[Path]:
    """Finished runs: variants near, far and close_by with three seeds each, in folders VARIANT/seedS."""
    psnr = {"near": (20.0, 20.2, 20.4), "far": (24.0, 24.1, 24.2), "close_by": (24.05, 24.15, 24.25)}
    probe = {"near": (0.90, 0.92, 0.94), "far": (0.10, 0.11, 0.12), "close_by": (0.50, 0.51, 0.52)}
    folders = []
    for number, variant in enumerate(psnr):
        for seed in range(3):
            folder = tmp_path / "runs" / variant / f"seed{seed}"
            (folder / "images").mkdir(parents=True)
            results = {
                "test/psnr": psnr[variant][seed],
                "test/probe_student": probe[variant][seed],
                "test/probe_teacher": 0.94,
                "test/cosine": 0.5,
                "test_layers/cosine_1": 0.75,
                "test_layers/cosine_2": 0.25 + 0.1 * seed,
            }
            (folder / "test_results.json").write_text(json.dumps(results))
            config = {"seed_everything": seed, "run": str(folder), "model": {"weighting": variant}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            shade = 40 * number + seed
            rows = {"original": 10, "teacher": 60, "reconstruction, 1 step": shade, "student": 200 - shade}
            images = {row: torch.full((2, 3, 16, 16), value, dtype=torch.uint8) for row, value in rows.items()}
            save_file(images, folder / "images" / "test.safetensors")
            writer = SummaryWriter(str(folder))
            for step in range(5):
                writer.add_scalar("train/flow", 1 / (step + 1 + number), step)
                writer.add_scalar("train/distillation", 0.0, step)
                writer.add_scalar("train/loss", 1.0, step)
            writer.close()
            torch.save({"global_step": 5}, folder / "last.ckpt")
            folders.append(folder)
    return folders
