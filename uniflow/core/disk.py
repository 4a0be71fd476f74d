"""Disks that are full: one clear error instead of many."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

# A file system with less than this is full, whatever error a library made of it.
_RESERVE = 2**20


class NoSpaceError(OSError):
    """A file could not be written because its file system is full.

    Args:
        path: the file or folder that was not written.
        needed: bytes that it needs, if known.
    """

    def __init__(self, path: Path, needed: int | None = None) -> None:
        folder = _existing_parent(path)
        free = shutil.disk_usage(folder).free
        amount = "" if needed is None else f", {_megabytes(needed)} needed"
        super().__init__(
            errno.ENOSPC, f"no space left on {mount_point(folder)}{amount}, {_megabytes(free)} free: {path} not written"
        )

    def __str__(self) -> str:
        return str(self.strerror)


def require_space(path: Path, needed: int) -> None:
    """Refuse to begin a file that will not fit.

    Raises:
        NoSpaceError: if the file system of `path` has less than `needed` bytes free.
    """
    if shutil.disk_usage(_existing_parent(path)).free < needed:
        raise NoSpaceError(path, needed)


def is_full(error: BaseException, path: Path) -> bool:
    """Whether `error`, raised while `path` was written, comes from a full file system.

    Libraries raise errors of their own for it, torch one about a position in the file; so what is free counts too.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = "no space left" in str(error).lower()
    return said or (isinstance(error, Exception) and shutil.disk_usage(_existing_parent(path)).free < _RESERVE)


def mount_point(path: Path) -> Path:
    """The folder at which the file system of `path` is mounted."""
    path = path.resolve()
    while not os.path.ismount(path):
        path = path.parent
    return path


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _megabytes(count: int) -> str:
    return f"{max(1, -(-count // 10**6))} MB"
