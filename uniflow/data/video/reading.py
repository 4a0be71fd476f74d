"""The one reader of clips: video files and folders of frames, as a stream of frames in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from uniflow.data.images.reading import EXTENSIONS as IMAGE_EXTENSIONS
from uniflow.data.images.reading import MAX_PIXELS, ImageReadError, read_image
from uniflow.data.video.codec import codec_frames, codec_info, import_torchcodec
from uniflow.data.video.files import (
    Frame,
    VideoBytes,
    VideoInfo,
    VideoReadError,
    VideoSource,
    file_frames,
    file_info,
    import_av,
    source_name,
)

Backend = Literal["pyav", "torchcodec"]
BACKENDS: tuple[str, ...] = ("pyav", "torchcodec")
FOLDER_RATE = 25.0  # frames a second that a folder of frames stands for: it has no clock


def import_backend(backend: Backend) -> None:
    """Import the package that a backend needs.

    Raises:
        ImportError: if it is missing, in one line.
    """
    import_torchcodec() if backend == "torchcodec" else import_av()


def video_info(source: VideoSource, backend: Backend = "pyav") -> VideoInfo:
    """Rate, number of frames and sound of a video file or of a folder of frames, without decoding.

    Args:
        source: as for `read_frames`.
        backend: as for `read_frames`.

    Raises:
        VideoReadError: if it cannot be opened, or holds no pictures.
    """
    if _is_folder(source):
        return VideoInfo(FOLDER_RATE, len(frame_files(source)), False)
    return codec_info(source) if backend == "torchcodec" else file_info(source)


def read_frames(
    source: VideoSource,
    *,
    start: float = 0.0,
    stride: int = 1,
    length: int | None = None,
    rate: float | None = None,
    max_pixels: int = MAX_PIXELS,
    backend: Backend = "pyav",
) -> Iterator[Frame]:
    """The frames of a video file or of a folder of frames, one in memory at a time.

    Args:
        source: the video file, or its content (`VideoBytes`); or the folder, whose images come in the natural order of
            their names (2 before 10), at 25 a second.
        start: seconds after the first frame.
        stride: every n-th frame is given.
        length: most frames to give; None is all.
        rate: frames a second: at each time k / rate the frame that is then shown, before `stride` counts. None gives
            every frame as it is.
        max_pixels: most pixels of a frame.
        backend: what decodes files, "pyav" or "torchcodec".

    Yields:
        Frames with the time since the clip's first frame in seconds, and the image, uint8 (3, H, W), upright. All of a
        clip have one size. What can be read of a broken file comes before the error.

    Raises:
        ValueError: if a number is out of range.
        VideoReadError: if it cannot be read, or breaks off before `length` frames.
        ImportError: for a file, without the backend's package.
    """
    if backend not in BACKENDS:
        raise ValueError(f"read_frames: backend must be {' or '.join(BACKENDS)}, not {backend!r}")
    for name, value, least in (("stride", stride, 1), ("length", 1 if length is None else length, 1)):
        if value < least:
            raise ValueError(f"read_frames: {name} must be at least {least}, not {value}")
    if start < 0 or (rate is not None and not 0 < rate < 1e6):
        raise ValueError(f"read_frames: start must be >= 0 and rate > 0, got start {start} and rate {rate}")
    if _is_folder(source):
        stream = _folder_frames(source, start, max_pixels)
    elif backend == "torchcodec":
        stream = codec_frames(source, start, max_pixels)
    else:
        stream = file_frames(source, start, max_pixels)
    return islice(stream if rate is None else _resampled(stream, rate, start), 0, length and length * stride, stride)


def read_clip(source: VideoSource, length: int, **options: Any) -> Tensor:
    """Exactly `length` frames as one tensor, uint8 (length, 3, H, W); `options` as of `read_frames`.

    Raises:
        VideoReadError: as in `read_frames`, or if there are fewer.
    """
    frames = [frame.image for frame in read_frames(source, length=length, **options)]
    if len(frames) < length:
        raise VideoReadError(source_name(source), f"{len(frames)} frames, fewer than the {length} of a clip")
    return torch.stack(frames)


def _is_folder(source: VideoSource) -> TypeGuard[str | os.PathLike[str]]:
    return not isinstance(source, VideoBytes) and os.path.isdir(source)


def frame_files(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the images in a folder of frames, in natural order: 2 before 10.

    Raises:
        VideoReadError: if there are none, or the folder cannot be read.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise VideoReadError(os.fspath(folder), f"cannot be opened ({error.strerror or error})") from error
    images = [name for name in names if Path(name).suffix.lower() in IMAGE_EXTENSIONS]
    if not images:
        raise VideoReadError(os.fspath(folder), "a folder without images; a folder of frames holds them directly")
    return sorted(images, key=natural)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key by which numbers in names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _folder_frames(folder: str | os.PathLike[str], start: float, max_pixels: int) -> Iterator[Frame]:
    size, first = None, ""
    for number, name in enumerate(frame_files(folder)):
        time = number / FOLDER_RATE
        if time < start - 0.5 / FOLDER_RATE:
            continue
        try:
            image = read_image(os.path.join(folder, name), name, max_pixels=max_pixels)
        except ImageReadError as error:
            raise VideoReadError(os.fspath(folder), f"frame {error}") from error
        if size is None:
            size, first = image.shape, name
        elif image.shape != size:
            raise VideoReadError(
                os.fspath(folder),
                f"frame {name} has {image.shape[2]} x {image.shape[1]} pixels, {first} has {size[2]} x {size[1]}",
            )
        yield Frame(time, image)


def _resampled(frames: Iterator[Frame], rate: float, start: float) -> Iterator[Frame]:
    """The frame that is shown at `start` + k / rate for k = 0, 1, ...: the last one that is not later."""
    shown: Frame | None = None
    number = 0
    for frame in frames:
        # Times in files are rounded to their clock's ticks, a millisecond in WebM.
        while shown is not None and start + number / rate < frame.time - 2e-3:
            yield Frame(start + number / rate, shown.image)
            number += 1
        shown = frame
    if shown is not None and start + number / rate <= shown.time + 2e-3:
        yield Frame(start + number / rate, shown.image)
