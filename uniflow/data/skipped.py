"""The log of images that could not be read: one line for each, in one file for all processes of a run."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TextIO

from uniflow.core.files import printable

logger = logging.getLogger(__name__)


class SkipLog:
    """Writes lines "SPLIT <tab> NAME <tab> REASON" to a file that several processes append to.

    Without a file (a data module without a trainer) the lines go to Python's logging.

    Attributes:
        calls: how often this process has called `add`, also for names that were logged before.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.calls = path, 0
        self._known: set[tuple[str, str]] = set()

    def add(self, split: str, name: str, reason: str) -> None:
        """Log that `name` of `split` was skipped; a name that is already logged is not written again."""
        self.calls += 1
        name, reason = printable(name), printable(reason)
        if (split, name) in self._known:
            return
        self._known.add((split, name))
        line = "\t".join(" ".join(text.split()) for text in (split, name, reason))
        if self.path is None:
            logger.warning("skipped an image: %s", line)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+", encoding="utf-8") as file:
            _lock(file.fileno())
            _cut_unfinished_line(file)
            file.seek(0)
            key = line.rsplit("\t", 1)[0] + "\t"
            if not any(other.startswith(key) for other in file):
                file.write(line + "\n")
                file.flush()

    def counts(self) -> dict[str, int]:
        """Number of logged images of each split."""
        if self.path is None or not self.path.exists():
            return dict(Counter(split for split, _ in self._known))
        with open(self.path, encoding="utf-8") as file:
            return dict(Counter(line.split("\t", 1)[0] for line in file))

    def summary(self) -> str | None:
        """One line for the end of a run, or None if nothing was skipped."""
        counts = self.counts()
        if not counts:
            return None
        listed = ", ".join(f"{count} {split}" for split, count in sorted(counts.items()))
        return f"unreadable images skipped: {listed}; named in {self.path or 'the log'}"


def _cut_unfinished_line(file: TextIO) -> None:
    """Remove the unfinished line of a process that was killed while it wrote."""
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):
        file.truncate(len(text[: text.rfind("\n") + 1].encode("utf-8")))


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed, if the system has such locks."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
