"""Atomic writes: after a kill, a file or folder is the old one or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniflow.core.disk import NoSpaceError, is_full


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to; it is renamed to `path` when the block ends.

    If the block raises, `path` stays as it was, and nothing else is left; on a full disk `NoSpaceError` is raised. For
    one process; if several write one folder together, each writes into `beside(path)`, and one of them calls
    `put_in_place` when all have finished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    _remove(new)
    try:
        yield new
    except BaseException as error:
        full = is_full(error, new)
        _remove(new)
        if full and not isinstance(error, NoSpaceError):
            raise NoSpaceError(path) from error
        raise
    put_in_place(path)


@contextmanager
def replacing_shared(path: Path) -> Iterator[Path]:
    """As `replacing`, for a file that several processes may write at once: the last one's stays.

    For what can be made again: it is not forced to the disk, so a power cut may leave a damaged file.
    """
    number, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    os.close(number)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        _remove(Path(name))
        raise


def beside(path: Path) -> Path:
    """Temporary path that `put_in_place` renames to `path`."""
    return path.with_name(f"{path.name}.part")


def aside(path: Path) -> Path:
    """Where `put_in_place` keeps the old folder while it renames the new one."""
    return path.with_name(f"{path.name}.previous")


def put_in_place(path: Path) -> None:
    """Move `beside(path)` to `path`.

    A file is replaced in one step. A folder takes two: the old one is renamed to `aside(path)`, then the new one to
    `path`. After a kill between the two, `existing` finds the old one and `recover` moves it back.
    """
    new, old = beside(path), aside(path)
    if new.is_file():
        with open(new, "rb") as file:  # on disk before the name points to it, in case of a power cut
            os.fsync(file.fileno())
    if path.exists() and (path.is_dir() or new.is_dir()):
        _remove(old)
        os.rename(path, old)
    os.replace(new, path)
    _remove(old)


def existing(path: Path) -> Path | None:
    """`path`, or after a kill its old folder; None if there is neither."""
    return next((candidate for candidate in (path, aside(path)) if candidate.exists()), None)


def recover(path: Path) -> None:
    """Clean up after a write of `path` that was killed; call it in one process only."""
    if not path.exists() and aside(path).exists():
        os.rename(aside(path), path)
    _remove(aside(path))
    _remove(beside(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
