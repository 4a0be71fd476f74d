"""Latents of clips: several frames may share one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from uniflow.decoders.base import PixelDecoder
from uniflow.layers.over_time import Memory
from uniflow.tokenizer.coded import CodedLatents


class ClipLatents(CodedLatents):
    """What a tokenizer knows about clips: outside of `over_time` every image stands for itself."""

    decoder: PixelDecoder

    @property
    def frames_per_latent(self) -> int:
        """Frames g of a clip that become one latent, but for its first, which has its own: 1 + k of 1 + k g frames."""
        return self.bottleneck.frames_per_latent

    @contextmanager
    def over_time(self, frames: int, memory: Memory | None = None) -> Iterator[None]:
        """While the result is entered, batches are of clips: `encode` merges frames, `decode` sees those before.

        A clip of T frames has 1 + ceil((T - 1) / g) latents; in a later piece of a clip, T frames have ceil(T / g).

        Args:
            frames: T: images (B T, 3, H, W) are those of B clips, clip after clip; 1 are images.
            memory: a dict, empty before a clip's first frames, for a clip that comes piece by piece: its pieces have
                1 + k g frames, then k g, and the last one any number.
        """
        with self.bottleneck.over_time(frames, memory), self.decoder.over_time(frames, memory):
            yield
