"""The listing of a large folder, kept in the user's cache folder as long as nothing has changed in the folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uniflow.core.caches import cache_path, read_cache, write_cache
from uniflow.core.files import printable
from uniflow.data.images.listing import State, Walk, folder_state, link_state, walk, warn_of_doubled
from uniflow.data.images.names import Listing, Names

FORMAT = 1  # of the files; another number where what is listed, or how it is sorted or hashed, changes
WORTH = 20_000  # files from which on a listing is kept: fewer are listed in less than a second
SETTLED = 2 * 10**9  # nanoseconds after which another change gives a folder another time on any file system
_COLUMNS = {"holders": np.int32, "places": np.float64, "devices": np.uint64, "inodes": np.uint64}


def list_files(folder: str | os.PathLike[str], extensions: Collection[str], cached: bool = True) -> Listing:
    """The files that `walk_images` finds below a folder, from the cache if that is as new as the folder.

    Args:
        folder: the folder.
        extensions: of the files, lower case with the dot.
        cached: False: the folder is read, and nothing is kept.

    Raises:
        ValueError: if a folder cannot be read.
    """
    what = {"root": printable(os.path.realpath(folder)), "extensions": sorted(extensions), "format": FORMAT}
    path = cache_path("listings", os.path.realpath(folder), **what) if cached else None
    about, arrays = read_cache(path)
    if all(about.get(name) == value for name, value in what.items()) and _is_current(folder, about):
        listing = _restored(about, arrays)
        if listing is not None:
            warn_of_doubled(folder, about["doubled"])
            return listing
    begin, before = time.time_ns(), _written(path)
    found = walk(folder, extensions)
    warn_of_doubled(folder, found.doubled)
    listing = Listing.of(found.files)
    if path is not None and _can_be_kept(found, begin) and _written(path) == before:  # else another process wrote it
        write_cache(path, {**what, **_about(found, listing)}, _arrays(listing))
    return listing


def _is_current(folder: str | os.PathLike[str], about: Mapping[str, Any]) -> bool:
    """Whether every folder and every link that the listing depends on is what it was."""
    try:
        return _same(folder, about["read"], folder_state) and _same(folder, about["links"], link_state)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):  # gone, or not a cache of this version
        return False


def _same(folder: str | os.PathLike[str], states: Mapping[str, list[int]], state: Callable[[str], State]) -> bool:
    return all(state(os.path.join(folder, name)) == tuple(known) for name, known in states.items())


def _can_be_kept(found: Walk, begin: int) -> bool:
    """Whether a change after the walk will show: not in folders changed just before it, which may change unseen."""
    if len(found.files) < WORTH:
        return False
    newest = max(max(state[2:]) for state in found.folders.values())
    return newest < begin - SETTLED and not any(on_fuse(device) for device in {s[0] for s in found.folders.values()})


def on_fuse(device: int, table: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a device is a file system of a user's program: those of object stores know no times of folders."""
    try:
        lines = table.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2:3] == [number]]
    return any(kind == "fuse" or kind.startswith("fuse.") for kind in kinds)


def _about(found: Walk, listing: Listing) -> dict[str, Any]:
    dependencies = {"read": found.folders, "links": found.links}
    return {**dependencies, "doubled": found.doubled, "folders": listing.folders}


def _arrays(listing: Listing) -> dict[str, np.ndarray]:
    text = np.frombuffer(listing.names.text, np.uint8)
    columns = {name: getattr(listing, name) for name in _COLUMNS}
    return {"text": text, "bounds": listing.names.bounds, **columns}


def _restored(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Listing | None:
    """The listing that `_about` and `_arrays` describe; None if they do not fit together."""
    wanted: dict[str, Any] = {"text": np.uint8, "bounds": np.int64, **_COLUMNS}
    if {name: array.dtype for name, array in arrays.items()} != wanted or not isinstance(about.get("doubled"), int):
        return None
    bounds, holders, folders = arrays["bounds"], arrays["holders"], about.get("folders")
    whole = [array.ndim == 1 and len(array) == len(bounds) - 1 for array in (arrays[name] for name in _COLUMNS)]
    inside = bounds.ndim == 1 and len(bounds) and bounds[0] == 0 and bounds[-1] == len(arrays["text"])
    if not (all(whole) and inside and (np.diff(bounds) > 0).all() and isinstance(folders, list)):
        return None
    if not all(isinstance(folder, str) for folder in folders):
        return None
    if len(holders) and not 0 <= holders.min() <= holders.max() < len(folders):
        return None
    columns = {name: arrays[name] for name in _COLUMNS}
    return Listing(Names(arrays["text"].tobytes(), bounds), folders=folders, **columns)


def _written(path: Path | None) -> int | None:
    try:
        return None if path is None else os.stat(path).st_mtime_ns
    except OSError:
        return None
