"""One thread a process: two OpenMP threads beside a busy core run many times slower. And fixtures of all tests."""

import os
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

from cli_fixtures import fit_parser, project, resolve, uniflow  # noqa: E402, F401

# How a forked process ends that inherited a lock which another thread of the test's process held.
FORK_ACCIDENTS = ["Timeout", "ProcessExitedException"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of files that fork processes get one more try if a process hung or was killed, and for nothing else."""
    for item in items:
        if _forks(item.path):
            item.add_marker(pytest.mark.timeout(200))
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=FORK_ACCIDENTS))


@cache
def _forks(path: Path) -> bool:
    return "fork" in path.read_text(encoding="utf-8")
