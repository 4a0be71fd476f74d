"""Video files by PyAV: opened safely, decoded frame by frame, upright."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.core.files import open_regular
from uniflow.data.images.reading import MAX_PIXELS, ImageReadError

# Extension -> libav's name of the container. A file is opened as what it is called: some of libav's formats are lists
# of addresses that it would fetch.
CONTAINERS = {
    ".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".avi": "avi", ".mkv": "matroska", ".webm": "matroska", ".gif": "gif",
}  # fmt: skip
EXTENSIONS = frozenset(CONTAINERS) - {".gif"}  # of files in folders, where a GIF is an image
TOLERANCE = 0.05  # share of the frames that a header may promise too many


class VideoReadError(ImageReadError):
    """A video that cannot be read, or not to its end; the message is "NAME: REASON" in one line."""


class VideoBytes(NamedTuple):
    """A video file in memory.

    Attributes:
        name: with the extension that says what it is.
        data: its content.
    """

    name: str
    data: bytes


VideoSource = str | os.PathLike[str] | VideoBytes


def source_name(source: VideoSource) -> str:
    """The name of a video, a path for a file."""
    return source.name if isinstance(source, VideoBytes) else os.fspath(source)


class Frame(NamedTuple):
    """One frame.

    Attributes:
        time: seconds since the first frame.
        image: uint8 (3, H, W) RGB, upright.
    """

    time: float
    image: Tensor


class VideoInfo(NamedTuple):
    """What a video's header says.

    Attributes:
        rate: frames a second, on average.
        frames: number of frames; None if the header does not say.
        sound: whether there is a sound track.
    """

    rate: float
    frames: int | None
    sound: bool


def import_av() -> Any:
    """PyAV.

    Raises:
        ImportError: without it, in one line.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install 'uniflow[video]'; folders of frames do not") from error
    return av


@contextmanager
def open_container(source: VideoSource) -> Iterator[Any]:
    """PyAV's container of a video; nothing but this file is opened, whatever it says.

    Raises:
        VideoReadError: if it cannot be opened, is not a container of the kind that it is called, or breaks while it
            is read inside of the context.
        ImportError: without PyAV.
    """
    av, name = import_av(), source_name(source)
    kind = container_kind(name)
    try:
        with io.BytesIO(source.data) if isinstance(source, VideoBytes) else open_regular(source) as file:
            if not file.seek(0, os.SEEK_END):
                raise VideoReadError(name, "the file is empty")
            file.seek(0)
            with av.open(file, format=kind, metadata_errors="replace") as container:
                yield container
    except av.error.FFmpegError as error:
        raise VideoReadError(name, f"cannot be read as {kind} ({one_line(error, 200)})") from error
    except OSError as error:
        raise VideoReadError(name, f"cannot be opened ({error.strerror or error})") from error


def container_kind(name: str) -> str:
    """libav's name of the container that a file is called.

    Raises:
        VideoReadError: if it is none that is read.
    """
    kind = CONTAINERS.get(Path(name).suffix.lower())
    if kind is None:
        raise VideoReadError(name, f"not a known kind of video ({' '.join(sorted(CONTAINERS))})")
    return kind


def file_info(source: VideoSource) -> VideoInfo:
    """What a video file's header says; errors as in `open_container`, or without a picture track."""
    with open_container(source) as container:
        stream = _pictures(container, source)
        return VideoInfo(_rate(stream), _count(container, stream), bool(container.streams.audio))


def file_frames(source: VideoSource, start: float = 0.0, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """The frames of a video file from the time `start` on, upright, one in memory at a time.

    Args:
        source: the file.
        start: seconds after the first frame; reached by the file's index where it has one.
        max_pixels: most pixels of a frame.

    Yields:
        Frames with rising times. What can be read of a broken file comes before the error.

    Raises:
        VideoReadError: if it cannot be read, breaks off, or changes its size.
    """
    name = source_name(source)
    with open_container(source) as container:
        stream = _pictures(container, source)
        context = stream.codec_context
        if context.width * context.height > max_pixels:
            raise VideoReadError(
                name, f"{context.width} x {context.height} pixels, more than {max_pixels:,} in all (max_pixels)"
            )
        count, frame, size = 0, None, None
        for frame in _from(container, stream, start):
            image = _upright(frame)
            if size not in (None, image.shape):
                raise VideoReadError(name, f"frame {count} has another size than the first: {tuple(image.shape[1:])}")
            size, count = image.shape, count + 1
            if frame.time >= start - 0.5 / _rate(stream):
                yield Frame(frame.time, image)
        if frame is None:
            raise VideoReadError(name, "not one frame can be decoded")
        promised, read = _count(container, stream), round(frame.time * _rate(stream)) + 1
        if promised is not None and read < promised * (1 - TOLERANCE) - 1:
            raise VideoReadError(name, f"breaks off after {read} of {promised} frames")


class _Timed(NamedTuple):
    time: float
    picture: Any


def _from(container: Any, stream: Any, start: float) -> Iterator[Any]:
    """Decoded frames with their times, from `start` or a little before it."""
    if start > 0:
        origin = stream.start_time or 0
        container.seek(origin + int(start / stream.time_base), stream=stream, backward=True)
        frames = _timed(container, stream)
        first = next(frames, None)
        if first is not None and first.time <= start:
            yield first
            yield from frames
            return
        container.seek(origin, stream=stream, backward=True)  # an index that leads astray
    yield from _timed(container, stream)


def _timed(container: Any, stream: Any) -> Iterator[_Timed]:
    origin = float((stream.start_time or 0) * stream.time_base)
    for number, picture in enumerate(container.decode(stream)):
        time = number / _rate(stream) if picture.pts is None else float(picture.pts * picture.time_base) - origin
        yield _Timed(time, picture)


def _upright(frame: _Timed) -> Tensor:
    image = torch.from_numpy(frame.picture.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(image, round(frame.picture.rotation / 90), dims=(1, 2)).contiguous()


def _pictures(container: Any, source: VideoSource) -> Any:
    if not container.streams.video:
        raise VideoReadError(source_name(source), "has no picture track")
    if container.streams.video[0].codec_context is None:
        raise VideoReadError(source_name(source), "its pictures are in a code that libav does not know")
    return container.streams.video[0]


def _rate(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate or 25
    return float(rate) if 0 < rate < 1000 else 25.0


def _count(container: Any, stream: Any) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if stream.duration:
        return round(float(stream.duration * stream.time_base) * _rate(stream))
    if container.duration and len(container.streams) == 1:  # of sound, too, it may be longer than the pictures
        return round(container.duration / 1e6 * _rate(stream))
    return None
