"""A folder that one process at a time may write."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class FolderLock:
    """Held by the process that writes a folder. The kernel gives it up when the process ends, however it ends.

    A POSIX record lock on a file in the folder: child processes do not inherit it, and network file systems that know
    locks (NFS 4, Lustre with flock) enforce it between machines. The file stays, and names the holder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._made_folder = False

    @property
    def held(self) -> bool:
        """Whether this process holds it; False where the file system knows no locks."""
        return self._file is not None

    def acquire(self) -> str | None:
        """Take the lock, and make the folder if needed.

        Returns:
            None if it is held now; else who holds it: "process PID on HOST".
        """
        if fcntl is None:
            return None
        self._made_folder = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.folder / LOCK_NAME, "a+")  # noqa: SIM115  # open as long as the lock is held
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            return holder
        except OSError:  # a file system without locks: better unlocked than unusable
            file.close()
            return None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return None

    def release(self) -> None:
        """Give the lock up; a folder that was made for it and holds nothing else is removed."""
        if self._file is None:
            return
        if self._made_folder and [path.name for path in self.folder.iterdir()] == [LOCK_NAME]:
            (self.folder / LOCK_NAME).unlink()
            self.folder.rmdir()
        self._file.close()
        self._file = None
