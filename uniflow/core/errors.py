"""Errors as one line of text."""

from __future__ import annotations

import textwrap


def one_line(error: BaseException, limit: int | None = None) -> str:
    """An exception's text on one line; the name of its class if it has no text.

    Args:
        error: the exception.
        limit: longest text in characters; None keeps all of it.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if limit is None else textwrap.shorten(text, limit, placeholder=" ...")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for libraries that write pages; the name of its class without text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
