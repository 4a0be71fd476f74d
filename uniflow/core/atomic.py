"""Files and folders that a kill leaves whole: the old one or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write a file or a folder to, which is moved to `path` when the block ends.

    If the block raises, `path` is as it was. One process writes; where several write one folder together, each writes
    into `beside(path)`, and one of them calls `put_in_place` when all have finished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    _remove(new)
    try:
        yield new
    except BaseException:
        _remove(new)
        raise
    put_in_place(path)


def beside(path: Path) -> Path:
    """Where that is written which is to become `path`."""
    return path.with_name(f"{path.name}.part")


def aside(path: Path) -> Path:
    """Where the old `path` is for the moment in which a folder takes its place."""
    return path.with_name(f"{path.name}.previous")


def put_in_place(path: Path) -> None:
    """Move `beside(path)` to `path`.

    A file is replaced in one step. A folder cannot be: the old one is moved aside, the new one into its place. A kill
    between the two leaves no `path`, but `aside(path)`, which `existing` finds and `recover` moves back.
    """
    new, old = beside(path), aside(path)
    if new.is_file():
        with open(new, "rb") as file:  # on the disk before the name points to it, so that power cuts are covered, too
            os.fsync(file.fileno())
    if path.exists() and (path.is_dir() or new.is_dir()):
        _remove(old)
        os.rename(path, old)
    os.replace(new, path)
    _remove(old)


def existing(path: Path) -> Path | None:
    """`path`, or what a kill has left of it; None if there is nothing."""
    return next((found for found in (path, aside(path)) if found.exists()), None)


def recover(path: Path) -> None:
    """Put right what a kill has left of a write of `path`; for the process that alone writes it."""
    if not path.exists() and aside(path).exists():
        os.rename(aside(path), path)
    _remove(aside(path))
    _remove(beside(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
