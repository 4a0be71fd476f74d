"""What a case is, how it is judged, and how files are broken."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import traceback
from collections.abc import Callable
from typing import Any

from uniflow.cli import main as command_line

SECONDS = 60  # for one case; a case that takes longer hangs
REFUSED, ACCEPTED, FAULT = "refused with one line", "accepted", "FAULT"
NUMBERS = ("-1", "0", "1e309", "nan", "inf", "1e3", "9" * 400, "", "null", "true", "[1", "{", "é", "0x1F", "1_000")
JSON_PIECES = (b"", b"\0", b"{}", b"null", b"1e999", b"[", b'"', b"-1", b"NaN", b"\xff")
BINARY_PIECES = (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0" * 512)
Outcome = tuple[str, str]
Case = tuple[str, Callable[[], Outcome]]


def changed(content: bytes, draw: random.Random, pieces: tuple[bytes, ...], head: int | None = None) -> bytes:
    """`content`, cut short or with one to three places overwritten, the first `head` bytes preferred."""
    if draw.random() < 0.2:
        return content[: draw.randrange(len(content))]
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(head or len(content), len(content)))
        piece = draw.choice(pieces) or bytes([draw.randrange(256)])
        content = content[:place] + piece + content[place + draw.choice((0, len(piece))) :]
    return content


class Hang(BaseException):
    """Raised in a case that takes too long; nobody catches it as an error of the machine."""


class Launched(BaseException):
    """Raised where a command would start processes: it has accepted its input."""


def command(words: list[str], good: bool = False, bad: bool = False) -> Callable[[], Outcome]:
    """A case that calls `uniflow WORDS`.

    Args:
        words: the command line.
        good: whether to refuse it is a fault.
        bad: whether to accept it is a fault.
    """

    def call() -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = command_line(words)
            except SystemExit as stop:
                code = stop.code
            except Launched:
                code = 0
        errors = [line for line in err.getvalue().splitlines() if line.startswith("uniflow: error: ")]
        said = f"exit code {code}, {err.getvalue()[-400:]!r}"
        if code == 0 and not errors:
            return (FAULT if bad else ACCEPTED), said
        clear = not good and code in (1, 2) and len(errors) == 1 and "Traceback" not in err.getvalue()
        return (REFUSED if clear else FAULT), said

    return call


def judged(case: Callable[[], Outcome]) -> Outcome:
    """The outcome of a case: whatever it raises, and more than `SECONDS`, is a fault."""
    signal.alarm(SECONDS)
    try:
        return case()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return FAULT, "".join(traceback.format_exception(error)[-2:]).replace("\n", " ")[:600]
    finally:
        signal.alarm(0)


def hangs(*_: Any) -> None:
    """Handler of the alarm."""
    raise Hang(f"longer than {SECONDS} s")
