"""How far a run has come, in a file beside its folder, and where it was made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import uniflow
from uniflow.core.json_files import read_json

FINISHED, FAILED, RUNNING, INTERRUPTED, MISSING = "finished", "failed", "running", "interrupted", "not yet run"


@dataclass
class State:
    """What is known of a run.

    Args:
        digest: hash of what the run was told (`Run.digest`).
        state: finished, failed, running or interrupted. A run that was killed still says running.
        fitted: whether training has ended, so that only the evaluation is missing.
        started: when the first attempt began, local time, ISO 8601.
        attempt: when the last attempt began, seconds since the epoch.
        seconds: wall time of all attempts that have ended.
        command: `uniflow fit ...` as it was called last.
        threads: OMP_NUM_THREADS of the run; empty where it was not set.
        error: of a failed run, why.
        made_with: machine, versions and commit (`surroundings`).
    """

    digest: str = ""
    state: str = MISSING
    fitted: bool = False
    started: str = ""
    attempt: float = 0.0
    seconds: float = 0.0
    command: str = ""
    threads: str = ""
    error: str = ""
    made_with: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write to `path` in one move: a reader sees the old file or the new one."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        part.replace(path)


def read_state(path: Path) -> State | None:
    """The state in the file `path`; None if there is no such file.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        return State(**{item.name: content[item.name] for item in fields(State)})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the state of a run ({error}); delete it to start afresh") from error


def now() -> str:
    """Local time to the second."""
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def surroundings() -> dict[str, str]:
    """Machine, versions and commit, as text for people."""
    packages = ("torch", "torchvision", "lightning", "timm")
    others = [f"{name} {version(name)}" for name in packages]
    texts = {
        "machine": _machine(),
        "versions": ", ".join([f"uniflow {uniflow.__version__}", f"Python {platform.python_version()}", *others]),
        "commit": _commit(Path(uniflow.__file__)),
    }
    return {name: text for name, text in texts.items() if text}


def _machine() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join([f"{os.cpu_count()} cores, {_processor()}", *gpus, f"{platform.system()} {platform.machine()}"])


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(file: Path) -> str:
    """The commit that `file` belongs to, and whether there are other changes; empty if git does not know the file."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", file.parent, *words], capture_output=True, text=True, check=False)
        except OSError:  # there is no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return ""
    commit = git("rev-parse", "--short=10", "HEAD")
    if commit is None:
        return ""
    return f"{commit} with local changes" if git("status", "--porcelain", "--untracked-files=no") else commit
