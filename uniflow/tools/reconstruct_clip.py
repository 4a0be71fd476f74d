"""`uniflow reconstruct` for clips: frame by frame, beside the original, with the sound kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from uniflow.core.atomic import replacing
from uniflow.core.pixels import to_uint8, to_unit_range
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.video.files import Frame, VideoReadError
from uniflow.data.video.reading import read_frames, video_info
from uniflow.data.video.writing import VideoWriter
from uniflow.evaluation.clips import Noise
from uniflow.layers.over_time import Memory
from uniflow.metrics.video import ClipScores
from uniflow.tokenizer import Tokenizer

GAP = 4  # white columns between original and reconstruction
PIXELS = 2**20  # of the frames that are decoded at once
MOST = 16  # frames at once


@torch.inference_mode()
def reconstruct_clip(
    model: Tokenizer,
    path: Path,
    target: Path,
    *,
    side: int,
    seed: int = 0,
    noise: Noise = "shared",
    frames: int | None = None,
    **options: Any,
) -> dict[str, float]:
    """Write a clip beside its reconstruction, as MP4, and return the numbers of `ClipScores`.

    Frames are read, decoded and written a few at a time, whatever the clip's length. A clip that breaks off is
    reconstructed as far as it goes, and a line on the standard error says so.

    Args:
        model: the tokenizer, in evaluation mode, where it shall run.
        path: a video file or a folder of frames.
        target: the MP4 file to write.
        side: short side in pixels to which frames are resized first; 0 keeps their size.
        seed: seed of the decoder's noise.
        noise: "shared", all frames start from the noise of the first one, or "independent", each from its own.
        frames: only so many frames; None is all.
        options: of `Tokenizer.decode`.

    Raises:
        VideoReadError: if not one frame can be read.
        ValueError: for tiles of a temporal decoder without a common context.
    """
    if model.decoder.temporal and options.get("tile") and not options.get("global_context"):
        raise ValueError("--tile with a temporal decoder needs --global_context true: tiles have no common past")
    info = video_info(path)
    memory: Memory = {}
    start_noise = _StartNoise(model, seed, noise, next(model.parameters()).device)
    stream = _Tolerant(read_frames(path, length=frames))
    scores = ClipScores()
    total = info.frames if frames is None or info.frames is None else min(frames, info.frames)
    with (
        replacing(target) as part,
        VideoWriter(part, info.rate, path if info.sound else None) as writer,
        Progress(console=Console(file=sys.stderr), transient=True) as progress,
    ):
        bar = progress.add_task(path.name, total=total)
        for times, images in _pieces(stream, side, model.frames_per_latent):
            with model.over_time(len(images), memory):
                latents = model.encode(images.to(start_noise.device))
                decoded = model.decode(latents, noise=start_noise(latents, len(images)), **options).float()
            originals = to_unit_range(images.to(decoded.device))
            decoded = decoded[..., : images.shape[-2], : images.shape[-1]]
            scores.update(decoded, originals)
            gap = originals.new_ones(*originals.shape[:-1], GAP)
            for time, picture in zip(times, to_uint8(torch.cat([originals, gap, decoded], dim=-1)), strict=True):
                writer.write(picture, time)
            progress.advance(bar, len(times))
    faults = (stream.fault and str(stream.fault), writer.fault and f"{path}: the sound breaks off ({writer.fault})")
    for fault in filter(None, faults):
        print(f"{fault}; {scores.frames} frames are written", file=sys.stderr)
    return scores.compute()


class _StartNoise:
    """The noise that frames start from, as `noise` says; None for a decoder that draws none."""

    def __init__(self, model: Tokenizer, seed: int, noise: Noise, device: torch.device) -> None:
        self.decoder, self.noise, self.device = model.decoder, noise, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._first: Tensor | None = None

    def __call__(self, latents: Tensor, frames: int) -> Tensor | None:
        """The noise (T, 3, H, W) of the next T = `frames` frames, whose latents are (n, C, h, w)."""
        if self.noise == "shared":
            if self._first is None:
                self._first = self.decoder.draw_noise(latents[:1], self._generator)
            return None if self._first is None else self._first.expand(frames, -1, -1, -1)
        drawn = [self.decoder.draw_noise(latents[:1], self._generator) for _ in range(frames)]
        return None if drawn[0] is None else torch.cat([noise for noise in drawn if noise is not None])


class _Tolerant:
    """Frames up to the fault of a clip that breaks off; a clip without any frame raises."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self.frames = frames
        self.fault: VideoReadError | None = None

    def __iter__(self) -> Iterator[Frame]:
        read = 0
        try:
            for frame in self.frames:
                read += 1
                yield frame
        except VideoReadError as error:
            if not read:
                raise
            self.fault = error


def _pieces(frames: _Tolerant, side: int, group: int) -> Iterator[tuple[list[float], Tensor]]:
    """A few frames at a time, 1 + k `group`, then k `group`: their times, and the images (T, 3, H, W), resized."""
    times: list[float] = []
    alone = 1  # the clip's first frame
    images: list[Tensor] = []
    for frame in frames:
        times.append(frame.time)
        images.append(resize_short_side(frame.image, side, "a frame") if side else frame.image)
        most = min(MOST, PIXELS // images[0][0].numel())
        if len(images) >= alone + max(1 - alone, (most - alone) // group) * group:
            yield times, torch.stack(images)
            times, images, alone = [], [], 0
    if images:
        yield times, torch.stack(images)
