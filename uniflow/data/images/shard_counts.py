"""How many samples shards have: from their index, from the user's cache folder, or counted."""

from __future__ import annotations

import os
import time
from typing import Any

from uniflow.core.caches import cache_path, read_cache, write_cache
from uniflow.data.images.archives import is_local, local_path
from uniflow.data.images.listing_cache import SETTLED
from uniflow.data.images.shard_lists import index_counts
from uniflow.data.images.shards import ShardReader

FORMAT = 1  # of the cache files; another number where what counts as a sample changes
WORTH = 10_000  # samples from which on the counts of a folder's shards are kept
State = list[int]


def shard_counts(urls: list[str], reader: ShardReader, trust_index: bool = True) -> list[int] | None:
    """Number of samples in each shard, from the index or from the members of a local tar file.

    What was counted is kept in the user's cache folder until the file changes. A shard of which something was skipped
    is counted each time, so that the log of skipped images says so.

    Args:
        urls: the shards.
        reader: counts the samples of local shards that the index does not name.
        trust_index: False: count all local shards, and read them whole, so that the numbers hold for broken ones.

    Returns:
        One number per shard, or None if any of them is unknown.

    Raises:
        DataError: as `ShardReader.raw`.
    """
    counts: list[int | None] = index_counts(urls) if trust_index else [None] * len(urls)
    by_folder: dict[str, list[int]] = {}
    for number, url in enumerate(urls):
        if counts[number] is None:
            if not is_local(url):
                return None
            by_folder.setdefault(os.path.dirname(local_path(url)), []).append(number)
    for folder, numbers in by_folder.items():
        found = _counted(folder, [urls[number] for number in numbers], reader, contents=not trust_index)
        for number, count in zip(numbers, found, strict=True):
            counts[number] = count
    return [count for count in counts if count is not None]


def _counted(folder: str, urls: list[str], reader: ShardReader, contents: bool) -> list[int]:
    """The samples of local shards in one folder."""
    root = os.path.realpath(folder)
    rule = {"field": reader.image_field, "extensions": sorted(reader.extensions), "contents": contents}
    path = cache_path("shards", root, format=FORMAT, **rule)
    kept, new = _read(read_cache(path)[0]), False
    counts = []
    for url in urls:
        begin, name, state = time.time_ns(), os.path.basename(local_path(url)), _state(url)
        known = kept.get(name)
        if known is None or known[1:] != state:
            calls = reader.skip_log.calls
            known = [sum(1 for _ in reader.raw(url, contents=contents)), *state]
            # A file changed just before it was counted may change unseen.
            if reader.skip_log.calls == calls and max(state[2:4]) < begin - SETTLED:
                kept[name], new = known, True
        counts.append(known[0])
    if new and sum(counts) >= WORTH:
        write_cache(path, {"shards": kept})
    return counts


def _state(url: str) -> State:
    """What changes when a shard does."""
    status = os.stat(local_path(url))
    return [status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size]


def _read(about: dict[str, Any]) -> dict[str, State]:
    """The number of samples of each shard that is known, and the shard's state when it was counted."""
    shards = about.get("shards")
    if not isinstance(shards, dict) or not all(
        isinstance(known, list) and len(known) == 6 for known in shards.values()
    ):
        return {}
    return shards
