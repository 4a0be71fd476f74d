"""One thread a process: two OpenMP threads beside a busy core run many times slower. And fixtures of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)

from cli_fixtures import fit_parser, project, resolve, uniflow  # noqa: E402, F401
