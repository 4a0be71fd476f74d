"""The image files below a folder, each once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from lightning.pytorch.utilities import rank_zero_warn

from uniflow.core.files import printable
from uniflow.data.images.reading import EXTENSIONS

# "lost+found" is at the root of many disks, and only an administrator can read it.
_LEFT_OUT = (".", "__MACOSX", "lost+found")
State = tuple[int, ...]


@dataclass
class Walk:
    """What `walk` found below a folder, and everything that it depends on.

    Attributes:
        files: names, each with a number that identifies its file (device and inode).
        doubled: names left out, because their file has another one.
        folders: relative names of the folders that were read, with `folder_state` before that.
        links: relative names of symbolic links, with `link_state`.
    """

    files: dict[str, int] = field(default_factory=dict)
    doubled: int = 0
    folders: dict[str, State] = field(default_factory=dict)
    links: dict[str, State] = field(default_factory=dict)


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
    found = walk(folder, extensions)
    warn_of_doubled(folder, found.doubled)
    return found.files


def walk(folder: str | os.PathLike[str], extensions: Collection[str]) -> Walk:
    """As `walk_images`, without its warning, and with what the names depend on."""
    images: dict[int, str] = {}
    links: list[tuple[str, int]] = []
    visited: set[int] = set()
    found = Walk()
    waiting: deque[str] = deque([""])  # folders are put at its front, links to folders at its end
    while waiting:
        prefix = waiting.popleft()
        subfolders: list[str] = []
        for entry in _entries(folder, prefix, visited, found):
            status, name = _status(entry), prefix + entry.name
            if entry.is_symlink():
                found.links[name] = _kind(status)
            if stat.S_ISDIR(status.st_mode):
                if not entry.name.startswith(_LEFT_OUT):
                    (waiting if entry.is_symlink() else subfolders).append(f"{name}/")
            elif not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in extensions:
                if entry.is_symlink():
                    links.append((name, _identity(status)))
                else:
                    found.doubled += images.setdefault(_identity(status), name) != name
        waiting.extendleft(reversed(subfolders))
    for name, identity in sorted(links):
        found.doubled += images.setdefault(identity, name) != name
    found.files = {name: identity for identity, name in images.items()}
    return found


def warn_of_doubled(folder: str | os.PathLike[str], doubled: int) -> None:
    """Say that files with several names are used once."""
    if doubled:
        rank_zero_warn(f"{folder}: {doubled} names are links to files that are used already; each file is used once")


def folder_state(path: str) -> State:
    """What changes when an entry of a folder is added, removed or renamed, or another folder takes its place.

    Its last number but one, and its last, are times in nanoseconds.

    Raises:
        OSError: if it is not there.
    """
    return _folder_state(os.stat(path))


def link_state(path: str) -> State:
    """What changes when a symbolic link leads elsewhere, or to something of another kind.

    Raises:
        OSError: if the link is not there.
    """
    try:
        return _kind(os.stat(path))
    except OSError:
        return _kind(os.lstat(path))


def _entries(folder: str | os.PathLike[str], prefix: str, visited: set[int], found: Walk) -> list[os.DirEntry[str]]:
    """The sorted entries of a folder; none if it was visited before."""
    path = os.path.join(folder, prefix)
    try:
        status = os.stat(path)
        found.folders[prefix] = _folder_state(status)
        identity = _identity(status)
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


def _folder_state(status: os.stat_result) -> State:
    # The time of the last change of the inode too: programs that copy folders set the other one back.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _kind(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)
