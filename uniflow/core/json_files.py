"""JSON from outside: one reader, whose errors are one line."""

from __future__ import annotations

import json
import os
from typing import Any

from uniflow.core.errors import one_line
from uniflow.core.files import DEFAULT_LIMIT, read_text

LARGE = 2**34  # bytes of a file that lists a data set


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text holds.

    Args:
        text: the JSON.
        where: it came from, for errors.

    Raises:
        ValueError: "WHERE is not valid JSON: REASON".
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {one_line(error)}") from error


def read_json(path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> Any:
    """The value in a JSON file of at most `limit` bytes.

    Raises:
        ValueError: as in `parse_json`.
        RefusedFileError: as in `read_text`.
        OSError: if it does not exist or cannot be read.
    """
    return parse_json(read_text(path, limit), os.fspath(path))


def read_json_object(path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> dict[str, Any]:
    """The JSON object in a file; raises as `read_json`, and a ValueError if it holds another value."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)} must hold a JSON object")
    return value
