"""What modules that look at clips share: they are told how many frames a clip has, around their calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

# What modules remember of a clip's earlier frames, each what it needs, for a clip that comes piece by piece.
Memory = dict[nn.Module, tuple[Tensor, ...]]


class OverTime(nn.Module):
    """A module whose batches are those of images, and of clips while `over_time` is entered."""

    _clip: tuple[int, Memory | None] = (1, None)

    @contextmanager
    def over_time(self, frames: int, memory: Memory | None = None) -> Iterator[None]:
        """While the result is entered, a batch is one of clips.

        Args:
            frames: T: a batch of B T images is that of B clips, clip after clip; 1 are images.
            memory: a dict, empty before a clip's first frames, for a clip that comes piece by piece.

        Raises:
            ValueError: if a clip has no frame.
        """
        if frames < 1:
            raise ValueError(f"a clip has 1 frame or more, not {frames}")
        before, self._clip = self._clip, (frames, memory)
        try:
            yield
        finally:
            self._clip = before
