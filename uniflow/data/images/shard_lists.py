"""Which shards a split has, and what their `index.json` says about them."""

from __future__ import annotations

import glob
import math
import os
import re
import stat
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from webdataset.shardlists import expand_urls

from uniflow.core.errors import one_line
from uniflow.core.json_files import read_json_object
from uniflow.data.images.archives import is_local, local_path

INDEX = "index.json"
MAX_SHARDS = 99_999  # of one pattern with braces

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def shard_urls(source: str | list[str], split: str, allow_missing: bool = False) -> list[str]:
    """The paths and URLs of `source`: braces expanded, local patterns listed in sorted order.

    Args:
        source: a path, URL or pattern, or a list of them.
        split: the split, for messages.
        allow_missing: whether shards may be missing that the index names and a local pattern matches.

    Raises:
        ValueError: if there are none, a local one is missing, or a pattern is wrong or stands for too many.
    """
    urls: list[str] = []
    for pattern in [source] if isinstance(source, str) else source:
        for url in _expanded(str(pattern)):
            url = os.path.expanduser(url) if is_local(url) else url
            if is_local(url) and glob.has_magic(url) and not os.path.exists(local_path(url)):
                found = sorted(glob.glob(local_path(url)))
                urls += found or [url]
                if not allow_missing:
                    _require_indexed(url, split, set(found))
            else:
                urls.append(url)
    missing = [url for url in urls if is_local(url) and not os.path.exists(local_path(url))]
    if missing:
        raise ValueError(f"WebDataset: the {split} shard {missing[0]} does not exist ({len(missing)} are missing)")
    if not urls:
        raise ValueError(f"WebDataset: no {split} shards are given")
    return urls


def separate(urls: dict[str, list[str]]) -> dict[str, list[str]]:
    """The shards of the splits, without the training shards that are held out under the same or another name.

    Raises:
        ValueError: if no training shard is left.
    """
    resolved: dict[str, str] = {}
    files = {split: [_identity(url, resolved) for url in urls[split]] for split in urls}
    if shared := set(files["val"]) & set(files["test"]):
        rank_zero_warn(f"WebDataset: {len(shared)} shards are both validation and test shards, such as {min(shared)}")
    held_out = {*files["val"], *files["test"]}
    train = [url for url, file in zip(urls["train"], files["train"], strict=True) if file not in held_out]
    removed = len(urls["train"]) - len(train)
    if not train:
        raise ValueError(
            f"WebDataset: all {removed} training shards are validation or test shards; give other ones to train on"
        )
    if removed:
        rank_zero_warn(f"WebDataset: {removed} training shards are also validation or test shards; they are held out")
    return {**urls, "train": train}


def read_index(url: str) -> dict[str, Any]:
    """The `index.json` next to a local shard; empty if there is none or the shard is remote.

    Raises:
        ValueError: if the file is not a JSON object as `uniflow pack` writes it.
    """
    if not is_local(url):
        return {}
    path = Path(local_path(url)).parent / INDEX
    try:
        return _index(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=16)
def _index(path: Path, changed: int) -> dict[str, Any]:
    index = read_json_object(path)
    shards, names = index.get("shards", {}), index.get("class_names")
    if not isinstance(shards, dict) or not all(type(count) is int and count >= 0 for count in shards.values()):
        raise ValueError(f"WebDataset: 'shards' in {path} must be an object of shard names and numbers of samples")
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"WebDataset: 'class_names' in {path} must be a list of names, or null")
    return index


def index_counts(urls: list[str]) -> list[int | None]:
    """Number of samples in each shard that the index beside it says; None without an index."""
    folders: dict[str, dict[str, int]] = {}  # an index is looked for once, not once for each shard

    def count(url: str) -> int | None:
        folder, name = os.path.split(local_path(url))
        if folder not in folders:
            folders[folder] = read_index(url).get("shards", {})
        return folders[folder].get(name)

    return [count(url) if is_local(url) else None for url in urls]


def _require_indexed(pattern: str, split: str, found: set[str]) -> None:
    """Refuse a pattern for which the index names shards that are not there; `found` are some that are."""
    folder, name = os.path.split(local_path(pattern))
    if glob.has_magic(folder):
        return
    shards = read_index(pattern).get("shards", {})
    paths = {shard: path for shard in shards if (path := os.path.join(folder, shard)) not in found}
    missing = [shard for shard, path in paths.items() if fnmatch(shard, name) and not os.path.exists(path)]
    if missing:
        raise ValueError(
            f"WebDataset: the {split} shard {os.path.join(folder, missing[0])} does not exist ({len(missing)} that "
            f"{INDEX} names are missing); replace them, or set allow_missing"
        )


def _expanded(pattern: str) -> list[str]:
    try:
        number = _count(pattern)
    except RecursionError:
        number = 2**63  # no pattern of a user has a thousand braces in each other
    if number > MAX_SHARDS:
        raise ValueError(
            f"WebDataset: {pattern[:200]} stands for {number:,} shards, more than {MAX_SHARDS:,}; check the braces, or "
            "give a list of patterns"
        )
    try:
        return expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"WebDataset: the shard pattern {pattern[:200]} is wrong: {one_line(error)}") from error


def _count(pattern: str) -> int:
    """Number of names that a pattern with braces stands for."""
    total, depth, start, parts = 1, 0, 0, 0
    inner = 1  # names of the alternatives before this one, at the outermost braces
    for i, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, parts, inner = i + 1, 0, 0
        elif depth == 1 and character in ",}":
            parts += character == ","
            inner += _count(pattern[start:i])
            if character == "}":
                total *= inner if parts else _range_length(pattern[start:i], inner)
                depth = 0
            start = i + 1
        elif character == "}" and depth:
            depth -= 1
    return total


def _range_length(text: str, otherwise: int) -> int:
    match = _RANGE.fullmatch(text)
    if match is None:
        return otherwise
    first, last, step = (int(group or 1) for group in match.groups())
    return math.ceil((abs(last - first) + 1) / max(1, abs(step)))


def _identity(url: str, resolved: dict[str, str]) -> str:
    """A name of a shard that does not depend on how its path is spelled; `resolved` keeps the paths of folders."""
    if not is_local(url):
        return url
    path = local_path(url)
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"{os.path.realpath(path)} ({_number(os.stat(path))})"
    folder, name = os.path.split(path)
    if folder not in resolved:  # once, because each part of its path is looked at
        resolved[folder] = os.path.realpath(folder)
    return f"{os.path.join(resolved[folder], name)} ({_number(status)})"


def _number(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"
