"""Errors as one line of text."""

from __future__ import annotations

import re
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

# Where in torch's own source a check has failed: "[enforce fail at alloc_cpu.cpp:127] err == 0. ".
_TORCH_CHECK = re.compile(r"^\[enforce fail at [^\]]*\] .*?\. ")


def one_line(error: BaseException, limit: int | None = None) -> str:
    """An exception's text on one line, without the place in torch's source; the name of its class if it has no text.

    Args:
        error: the exception.
        limit: longest text in characters; None keeps all of it.
    """
    text = _TORCH_CHECK.sub("", " ".join(str(error).split())) or type(error).__name__
    return text if limit is None else textwrap.shorten(text, limit, placeholder=" ...")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for libraries that write pages; the name of its class without text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def write_trace(folder: Path, error: BaseException, rank: int = 0) -> Path:
    """Append an exception's trace to FOLDER/error.log (error_rank{R}.log of other processes), and return the file."""
    path = folder / ("error.log" if rank == 0 else f"error_rank{rank}.log")
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)) + "\n")
    return path


def listed(names: Sequence[str], room: int = 100) -> str:
    """Names with commas between them; of more than `room` characters the first ones, and how many there are."""
    if len(", ".join(names)) <= room:
        return ", ".join(names) or "none"
    shown: list[str] = []
    for name in names:
        if len(", ".join([*shown, name])) > room:
            break
        shown.append(name)
    return f"{', '.join(shown)}, ... ({len(names)} in all)"
