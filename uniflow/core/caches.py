"""Files in the user's cache folder: what is found again where it is still true, and ignored where it is damaged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from uniflow.core.atomic import replacing_shared
from uniflow.core.files import open_regular

_ABOUT = "about"
_LARGEST = 2**34  # bytes of a cache file


def cache_path(kind: str, source: str, **what: Any) -> Path | None:
    """The cache file about `source`, in `$XDG_CACHE_HOME/uniflow` or else `~/.cache/uniflow`; None without a home.

    Args:
        kind: the folder in there.
        source: the resolved path of what it is about; the file's name begins with the last part of it.
        what: plain values; others give another file.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(home):
        return None
    number = sha256(json.dumps([source, what], sort_keys=True).encode()).hexdigest()[:24]
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", os.path.basename(source)).lstrip(".")[:40]
    return Path(home, "uniflow", kind, f"{readable or 'root'}-{number}.npz")


def read_cache(path: Path | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_cache` wrote to `path`: plain values and arrays; both empty if there is nothing that can be read."""
    if path is None:
        return {}, {}
    try:
        with open_regular(path, _LARGEST) as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        about = json.loads(arrays.pop(_ABOUT).tobytes())
    except Exception:  # a damaged or foreign file fails in any of zipfile, zlib, numpy and json
        return {}, {}
    return (about, arrays) if isinstance(about, dict) else ({}, {})


def write_cache(path: Path | None, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Keep plain values and arrays; where that cannot be, nothing happens. Several processes may write at once."""
    if path is None:
        return
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with suppress(OSError):  # a home that is read-only or full: what is cached is then made anew
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing_shared(path) as part, open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **{_ABOUT: text}, **(arrays or {}))
