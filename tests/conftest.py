"""One thread a process: two OpenMP threads beside a busy core run many times slower. And fixtures of all tests."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

from cli_fixtures import fit_parser, project, resolve, uniflow  # noqa: E402, F401


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """A process group that a test leaves open would be taken for their own by the processes that a later test forks:
    its threads are not in them, so their first collective would wait for ever."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
