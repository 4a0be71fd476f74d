"""`uniflow fit`, killed over and over, does what an undisturbed run does: benchmarks/stress_resume.py, a few rounds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import REPOSITORY


def stress(*options: str) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/stress_resume.py", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]  # packing shards says so, too
    return {line["name"]: line["value"] for line in lines}


def check(found: dict[str, Any], rounds: int, terminations: int) -> None:
    assert (found["killed"], found["terminated"]) == (rounds, terminations)
    assert not found["corrupt"] + found["missing"] + found["wrong_steps"] + found["differing_replays"]
    assert not found["differing_states"]
    assert not found["differing_exports"]


@pytest.mark.slow  # test_kill.py and test_preemption.py have one of each
def test_one_kill_and_one_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In forks of this process, which has everything imported."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    module = importlib.import_module("benchmarks.stress_resume")
    check(module.stress(tmp_path, "scenes", processes=1, rounds=1, terminations=1), 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["scenes", "folder", "shards"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_many_kills(data: str, processes: str) -> None:
    check(stress("--data", data, "--processes", processes, "--rounds", "4", "--terminations", "1"), 4, 1)
