"""Runs of an ablation as processes: each is `uniflow fit`, then `uniflow test`, and continues where it was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NoReturn

from uniflow.ablation.metrics import duration
from uniflow.ablation.plan import Run
from uniflow.ablation.state import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    MISSING,
    RUNNING,
    State,
    now,
    read_state,
    surroundings,
)
from uniflow.core import exit_codes

# The command `uniflow` of this interpreter; as a module, so that Lightning can start more of its processes.
COMMAND = (sys.executable, "-m", "uniflow.cli")
RESULTS = "test_results.json"
POLL_SECONDS = 0.1
TERMINATE_SECONDS = 20.0


def standing(run: Run) -> State:
    """The state of a run by its files; a run with other settings counts as not yet run.

    Raises:
        ValueError: if the state's file holds something else.
    """
    state = read_state(run.state)
    if state is None or state.digest != run.digest():
        return State()
    if state.state == FINISHED and not (run.folder / RESULTS).is_file():
        state.state = INTERRUPTED
    return state


def is_outdated(run: Run) -> bool:
    """Whether the run's folder holds a run with other settings."""
    state = read_state(run.state)
    if state is None:
        return run.folder.exists() and any(run.folder.iterdir())
    return state.digest != run.digest()


def discard(run: Run) -> None:
    """Delete what a run has left, so that it starts afresh.

    Raises:
        ValueError: if a process is still at it.
    """
    if not run.folder.parent.is_dir():
        return
    with _locked(run.lock) as lock:
        if lock is None:
            raise ValueError(f"{run.folder} is being run by another process: wait for it, or end it")
        shutil.rmtree(run.folder, ignore_errors=True)
        for file in (run.state, run.log):
            file.unlink(missing_ok=True)


def execute(
    run: Run, threads: int | None = None, stop: threading.Event | None = None, extra: dict[str, str] | None = None
) -> State:
    """Train and evaluate, or do the rest of it.

    A finished run is left alone; one with a last.ckpt continues from it; one without starts again. The state is on
    disk before and after each command.

    Args:
        run: the run.
        threads: OMP_NUM_THREADS of its processes, unless the environment sets it already.
        stop: when set, the run is ended.
        extra: further environment variables of its processes.

    Returns:
        The run's state; running if another process has the run.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(run.lock) as lock:
        state = standing(run)
        if lock is None:
            state.state = RUNNING
            return state
        if state.state == FINISHED:
            return state
        environment = _environment(threads, extra)
        state = _begin(run, state, environment)
        try:
            _commands(run, state, lambda words: _call(words, run, lock, environment, stop))
        except OSError as error:
            state.state, state.error = FAILED, str(error)
        state.seconds += time.time() - state.attempt
        state.write(run.state)
    return state


def _begin(run: Run, before: State, environment: dict[str, str]) -> State:
    """The state at the start of an attempt, written; what an earlier attempt left unusable is deleted."""
    last = run.folder / "last.ckpt"
    lost = 0.0
    if before.state == RUNNING and run.log.is_file():  # killed: it lived until the last line of its log at least
        lost = max(0.0, run.log.stat().st_mtime - before.attempt)
    resume = last.exists()
    if not resume:
        shutil.rmtree(run.folder, ignore_errors=True)
    state = State(
        digest=run.digest(),
        state=RUNNING,
        fitted=before.fitted and resume,
        started=before.started or now(),
        attempt=time.time(),
        seconds=before.seconds + lost,
        command=shlex.join(["uniflow", *run.fit_words(resume=resume)]),
        threads=environment.get("OMP_NUM_THREADS", ""),
        made_with=surroundings(),
    )
    state.write(run.state)
    return state


def _commands(run: Run, state: State, call: Callable[[list[str]], int | None]) -> None:
    """fit, unless that is done, and test; `state` says how it ended."""
    if not state.fitted:
        if _failed(run, state, call(run.fit_words(resume=(run.folder / "last.ckpt").exists()))):
            return
        state.fitted = True
        state.write(run.state)
    if _failed(run, state, call(run.test_words())):
        return
    if (run.folder / RESULTS).is_file():
        state.state = FINISHED
    else:
        state.state, state.error = FAILED, f"uniflow test wrote no {RESULTS}"


def _failed(run: Run, state: State, code: int | None) -> bool:
    if code == 0:
        return False
    if code in (None, exit_codes.INTERRUPTED, exit_codes.REQUEUE):
        state.state = INTERRUPTED
        return True
    reason = last_line(run.log)
    if code < 0:  # by a signal: the log need not know
        reason = f"ended by {signal.Signals(-code).name}; the log ends with: {reason}"
    state.state, state.error = FAILED, reason
    return True


def _call(
    words: list[str], run: Run, lock: int, environment: dict[str, str], stop: threading.Event | None
) -> int | None:
    """Run one command of `uniflow`, its output into the log; its exit code, None if it was ended because of `stop`."""
    with run.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(['uniflow', *words])}\n")
        log.flush()
        # The command keeps the lock as long as it lives, even if this process is killed.
        child = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
        )
        try:
            while child.poll() is None:
                if stop is not None and stop.is_set():
                    return None
                time.sleep(POLL_SECONDS)
            return child.returncode
        finally:
            _end(child)


def _end(child: subprocess.Popen[Any]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _environment(threads: int | None, extra: dict[str, str] | None) -> dict[str, str]:
    # As for the installed script, the current directory must not come before the libraries.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **(extra or {})}
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The open lock, None if another process holds it. It is free again when all who hold it have ended."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def last_line(log: Path) -> str:
    """The last line with text in a log, without control sequences."""
    if not log.is_file():
        return "there is no log"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        text = file.read().decode("utf-8", errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line and not line.startswith("$ uniflow ")]
    return lines[-1] if lines else "the log is empty"


def launch_local(runs: Sequence[Run], jobs: int) -> None:
    """Run `jobs` processes at a time on this machine; each has one thread if there are several.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when all processes have ended.
    """
    stop = threading.Event()
    with _terminate_as_interrupt(), ThreadPoolExecutor(jobs) as pool:
        threads = 1 if jobs > 1 else None
        futures = {pool.submit(_announced, run, threads, stop): run for run in runs}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                print(f"[{number}/{len(runs)}] {outcome_line(futures[future], future.result())}", flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _announced(run: Run, threads: int | None, stop: threading.Event) -> State:
    print(f"{run.label}: started, log: {run.log}", flush=True)
    return execute(run, threads, stop)


def outcome_line(run: Run, state: State) -> str:
    """How a run has ended, for people."""
    if state.state == FINISHED:
        return f"{run.label}: finished, {duration(state.seconds)}"
    if state.state == FAILED:
        return f"{run.label}: failed: {state.error}"
    if state.state == RUNNING:
        return f"{run.label}: left alone, another process is at it"
    return f"{run.label}: {state.state if state.state != MISSING else 'not started'}"


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt; only where signals can be handled, in the main thread."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
