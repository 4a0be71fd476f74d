"""The first images of a loader, whatever the size of its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class FirstImages:
    """Batches of the first `count` images, with "image" of the last batch cut to fit; None: all images.

    Of clips a batch keeps whole ones: as many as fit, at least one.
    """

    def __init__(self, batches: Iterable[Any], count: int | None) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Any]:
        left = self.count
        for batch in self.batches if left != 0 else ():
            if left is None:
                yield batch
                continue
            frames = batch.get("frames", 1)
            yield {**batch, "image": batch["image"][: max(frames, left - left % frames)]}
            left -= min(left, len(batch["image"]))
            if left == 0:
                return


def rank_share(count: int | None, rank: int, world_size: int) -> int | None:
    """How many of the first `count` images the process `rank` gets, if images are dealt to processes one by one."""
    return None if count is None else len(range(rank, count, world_size))
