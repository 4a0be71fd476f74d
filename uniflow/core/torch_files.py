"""Files of `torch.save` that may come from anywhere: nothing is unpickled, and none unpacks to more than it is."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from typing import IO, Any

import torch

from uniflow.core.files import open_regular


def load_plain(path: str | os.PathLike[str], mmap: bool = False) -> Any:
    """Tensors and plain values of a file of `torch.save`, on the CPU.

    Args:
        path: the file.
        mmap: leave the tensors' data in the file until they are used.

    Raises:
        ValueError: if it is damaged, holds anything else, or would unpack to more than its own size.
        OSError: if there is no such file, or it is not a regular one.
    """
    check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that are refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        if error.errno is not None:  # of the file system
            raise
        raise ValueError(_unsafe(path, _DAMAGED)) from error
    except Exception as error:  # torch raises many types for a file that is not a checkpoint
        raise ValueError(_unsafe(path, _DAMAGED)) from error


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse what is not a regular file with an archive of `torch.save`.

    Raises:
        ValueError: if it is not an archive, or one that unpacks to more than its own size, which torch never writes.
        OSError: if there is no such file, or it is not a regular one.
    """
    with open_regular(path) as file:
        reason = _problem(file)
    if reason:
        raise ValueError(_unsafe(path, reason))


def check_archive_bytes(file: IO[bytes], name: str) -> None:
    """`check_archive` for a piece of a file, which is then read from its beginning again; it need not be an archive."""
    reason = _problem(file)
    file.seek(0)
    if reason and reason != _DAMAGED:
        raise ValueError(_unsafe(name, reason))


_DAMAGED = "it is damaged, or holds more than tensors and plain values"


def _problem(file: IO[bytes]) -> str | None:
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # zipfile raises many types
        return _DAMAGED
    return "its archive would unpack to more than its own size" if unpacked > size else None


def _unsafe(path: str | os.PathLike[str], reason: str) -> str:
    return f"{os.fspath(path)} is not a checkpoint that can be read safely: {reason}"
