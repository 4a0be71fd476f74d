"""The frames of one clip in their common crop, and batches of clips as batches of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uniflow.data.collate import collate
from uniflow.data.images.shards import Crops
from uniflow.data.images.transforms import CropPlan
from uniflow.data.video.files import VideoReadError, VideoSource, source_name
from uniflow.data.video.reading import BACKENDS, Backend, read_frames, video_info


class ClipCut:
    """Cuts a clip of `length` frames out of a video: in training from a random time on, in evaluation the middle.

    Args:
        length: frames T of a clip, >= 1.
        stride: every n-th frame of the file is one of the clip, >= 1.
        rate: frames a second that files are brought to first; None takes each file's own.
        max_pixels: most pixels of a frame.
        backend: what decodes files, "pyav" or "torchcodec".
        owner: whose arguments these are, for errors.

    Raises:
        ValueError: if a number is out of range, or the backend is unknown.
    """

    def __init__(
        self, length: int, stride: int, rate: float | None, max_pixels: int, backend: Backend, *, owner: str
    ) -> None:
        for name, value in (("length", length), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{owner}: {name} must be at least 1, not {value}")
        if rate is not None and not 0 < rate < 1e6:
            raise ValueError(f"{owner}: rate must be above 0 frames a second, not {rate}")
        if backend not in BACKENDS:
            raise ValueError(f"{owner}: backend must be {' or '.join(BACKENDS)}, not {backend!r}")
        self.length, self.stride, self.rate, self.max_pixels = length, stride, rate, max_pixels
        self.backend: Backend = backend

    def settings(self) -> dict[str, Any]:
        """What an evaluation's fingerprint holds of it."""
        settings = {"length": self.length, "stride": self.stride, "rate": self.rate}
        return settings if self.backend == "pyav" else {**settings, "backend": self.backend}

    def __call__(
        self, source: VideoSource, crops: Crops, generator: torch.Generator | None, size: tuple[int, int] | None
    ) -> Tensor:
        """The cropped frames, uint8 (T, 3, H, W); only these are kept in memory.

        Args:
            source: the video.
            crops: of training and of evaluation.
            generator: of training's start and crop; None is the middle, in the crop of evaluation.
            size: height and width of training's crop; by default its own.

        Raises:
            VideoReadError: if it cannot be read, breaks off, or is too short.
        """
        info = video_info(source, self.backend)
        seconds = ((self.length - 1) * self.stride + 1) / (self.rate or info.rate)
        slack = max(0.0, (info.frames or 0) / info.rate - seconds)
        share = 0.5 if generator is None else torch.rand((), generator=generator, dtype=torch.float64).item()
        start = int(share * slack * info.rate + 1e-6) / info.rate  # the time of a frame
        frames: list[Tensor] = []
        plan: CropPlan | None = None
        options: dict[str, Any] = {"start": start, "stride": self.stride, "length": self.length, "rate": self.rate}
        for frame in read_frames(source, **options, max_pixels=self.max_pixels, backend=self.backend):
            height, width = frame.image.shape[-2:]
            if plan is None:
                random, centre = crops
                plan = centre.plan(height, width) if generator is None else random.draw(height, width, generator, size)
            frames.append(plan.image(frame.image))
        if len(frames) < self.length:
            what = f"too short: {len(frames)} of the {self.length} frames of a clip"
            raise VideoReadError(source_name(source), what)
        return torch.stack(frames)


def collate_clips(samples: Sequence[dict[str, Any]], list_fields: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A batch of clips as a batch of frames: "image" (B T, 3, H, W) and "frames": T; further fields for each frame.

    Args:
        samples: dicts with "image" (T, 3, H, W), all with the same T.
        list_fields: as for `uniflow.data.collate.collate`.

    Returns:
        Clip after clip. Numbers and texts are repeated for each frame; names get the frame's number.
    """
    batch = collate(samples, list_fields)
    frames = batch["image"].shape[1]
    result = {"image": batch.pop("image").flatten(0, 1), "frames": frames}
    if "name" in batch:
        result["name"] = [f"{name} frame {number:03d}" for name in batch.pop("name") for number in range(frames)]
    for field, values in batch.items():
        if isinstance(values, list):
            result[field] = [value for value in values for _ in range(frames)]
        else:
            result[field] = values.repeat_interleave(frames, dim=0)
    return result
