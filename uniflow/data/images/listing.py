"""The image files below a folder, each once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Collection

from lightning.pytorch.utilities import rank_zero_warn

from uniflow.core.files import printable
from uniflow.data.images.reading import EXTENSIONS

# "lost+found" is at the root of many disks, and only an administrator can read it.
_LEFT_OUT = (".", "__MACOSX", "lost+found")


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the image files below `folder`, relative to it, with "/"; hidden files are left out.

    Raises:
        ValueError: if a folder cannot be read.
    """
    return sorted(walk_images(folder))


def walk_images(folder: str | os.PathLike[str], extensions: Collection[str] = EXTENSIONS) -> dict[str, int]:
    """The names of `list_images`, each with a number that identifies its file (device and inode).

    Other kinds of files are listed if `extensions`, lower case with the dot, names them instead.

    Links are followed, but no folder is visited twice, and of several names of one file only one is kept: one without
    links if there is one, then the first that is reached in sorted order. Links that lead nowhere and files that cannot
    be opened are listed: whoever reads them reports them.

    Raises:
        ValueError: if a folder cannot be read.
    """
    images: dict[int, str] = {}
    links: list[tuple[str, int]] = []
    visited: set[int] = set()
    doubled = 0
    waiting: deque[str] = deque([""])  # folders are put at its front, links to folders at its end
    while waiting:
        prefix = waiting.popleft()
        subfolders: list[str] = []
        for entry in _entries(os.path.join(folder, prefix), visited):
            status, name = _status(entry), prefix + entry.name
            if stat.S_ISDIR(status.st_mode):
                if not entry.name.startswith(_LEFT_OUT):
                    (waiting if entry.is_symlink() else subfolders).append(f"{name}/")
            elif not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in extensions:
                if entry.is_symlink():
                    links.append((name, _identity(status)))
                else:
                    doubled += images.setdefault(_identity(status), name) != name
        waiting.extendleft(reversed(subfolders))
    for name, identity in sorted(links):
        doubled += images.setdefault(identity, name) != name
    if doubled:
        rank_zero_warn(f"{folder}: {doubled} names are links to files that are used already; each file is used once")
    return {name: identity for identity, name in images.items()}


def _entries(path: str, visited: set[int]) -> list[os.DirEntry[str]]:
    """The sorted entries of a folder; none if it was visited before."""
    try:
        identity = _identity(os.stat(path))
        if identity in visited:
            return []
        visited.add(identity)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise ValueError(f"there is no folder {printable(path).rstrip('/')}") from error
    except OSError as error:
        raise ValueError(
            f"the folder {printable(path)} cannot be read ({error.strerror}); make it readable or move it elsewhere"
        ) from error


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:  # a link that leads nowhere, or to itself
        return entry.stat(follow_symlinks=False)


def _identity(status: os.stat_result) -> int:
    return status.st_dev << 64 | status.st_ino
