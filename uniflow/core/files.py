"""Files from outside: only regular ones are opened, and no more than a limit is read into memory."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

DEFAULT_LIMIT = 2**28

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RefusedFileError(OSError):
    """A file that is not opened, or not read as a whole; the message is "PATH: REASON" in one line.

    Args:
        path: the file.
        reason: what is wrong with it, and what would be right.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(errno.EINVAL, reason, printable(os.fspath(path)))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[type[RefusedFileError], tuple[str, str]]:
        return type(self), (str(self.filename), str(self.strerror))


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading; returns at once, also for what is not one.

    Args:
        path: the file; links are followed.
        limit: largest size in bytes; None: any size.

    Raises:
        RefusedFileError: if it is a folder, named pipe, socket or device, or larger than `limit`.
        OSError: if it does not exist or cannot be opened.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise RefusedFileError(path.replace("\0", "\\0"), "a path cannot hold a null character")
    _check(path, os.stat(path), limit)  # before it is opened, because opening some devices does something
    # Without O_NONBLOCK, `open` waits for a writer if the file has become a named pipe meanwhile.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check(path, os.fstat(file.fileno()), limit)
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        RefusedFileError: as in `open_regular`; also if the file grows beyond `limit` while it is read.
        OSError: if it does not exist or cannot be read.
    """
    with open_regular(path, limit) as file:
        data = file.read(os.fstat(file.fileno()).st_size + 1)
        while more := file.read(min(2**20, limit + 1 - len(data))):  # files in /proc say that they are empty
            data += more
    if len(data) > limit:
        raise RefusedFileError(path, _too_large(None, limit))
    return data


def read_text(path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes.

    Raises:
        RefusedFileError: as in `read_bytes`, or if the file is not UTF-8.
        OSError: if it does not exist or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedFileError(path, f"not a text in UTF-8 (byte {error.start})") from error


def check_folder(folder: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> None:
    """Look at a folder's files before another library opens them, which would wait for a pipe or read a device.

    Args:
        folder: whose files are looked at; a path that is not a folder is left to the library.
        limit: largest size of a .json file in bytes.

    Raises:
        RefusedFileError: naming the first that is not a regular file, or too large.
    """
    if not os.path.isdir(folder):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not os.path.exists(entry.path):
            continue  # a broken link: the library says what is missing
        if not entry.is_dir():
            _check(entry.path, entry.stat(), limit if entry.name.endswith(".json") else None)


def printable(text: str) -> str:
    """`text` as it can be written in UTF-8: bytes of file names that are not UTF-8 become `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _check(path: str, status: os.stat_result, limit: int | None) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise RefusedFileError(path, f"{_KINDS.get(kind, 'not a file')}; give a regular file")
    if limit is not None and status.st_size > limit:
        raise RefusedFileError(path, _too_large(status.st_size, limit))


def _too_large(size: int | None, limit: int) -> str:
    amount = "" if size is None else f"{_amount(size)}, "
    return f"{amount}more than the {_amount(limit)} that are read at most"


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
