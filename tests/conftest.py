"""One thread a process: two OpenMP threads beside a busy core run many times slower. And fixtures of all tests."""

import _imp
import gc
import os
import sys
from collections.abc import Generator, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# pandas takes the folder tests/bottleneck for the package of that name. Its import fails then, and where a later one
# goes well the import lock stays taken: each thread that imports something waits for ever.
sys.modules["bottleneck"] = None  # type: ignore[assignment]

os.fsync = lambda descriptor: None  # no test cuts the power, and a fit writes some ten files

gc.disable()  # it takes a sixth of the time of the imports; `pytest_collection` has them all
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# In its first backward pass autograd starts a thread for each device that it knows, and refuses to work in later forks
# if there is one. Fake tensors tell it of a GPU that is not there, so the first pass comes before them.
torch.ones((), requires_grad=True).backward()

from cli_fixtures import fit_parser, fitted, fitted_once, project, resolve, uniflow  # noqa: E402, F401

# What Lightning leaves in the environment of a process that has trained.
LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "GLOBAL_RANK", "RANK")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        gc.freeze()  # modules and tests stay: no later collection looks at them
        gc.enable()


@pytest.fixture(autouse=True)
def _nothing_of_a_launch_is_left() -> Iterator[None]:
    """What a test leaves open must not reach the processes that a later test forks.

    They take a process group for their own though its threads are not in them, and with the port of an earlier group's
    store they find the addresses of processes that are gone: either way they wait for ever.
    """
    before = {name: os.environ.get(name) for name in LAUNCHED}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    assert not _imp.lock_held(), "the import lock is taken: threads that import something would wait for ever"
