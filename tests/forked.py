"""Commands in processes of their own that are forked from the test's: a process started anew imports for 5 seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkProcess
from pathlib import Path

from cli_fixtures import exit_code

SCRIPT = Path(sys.executable).parent / "uniflow"


def start(*words: str, log: str | Path = os.devnull) -> ForkProcess:
    """`uniflow WORDS` with its output in `log`, as the leader of a group of processes."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log))
    process.start()
    return process


def _run(words: tuple[str, ...], log: str | Path) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)  # pytest's write elsewhere
    # Lightning starts further processes by this process's command line.
    sys.argv = [str(SCRIPT), *words]
    sys.modules["__main__"].__spec__ = None
    sys.exit(exit_code(*words))
