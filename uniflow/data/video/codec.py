"""Video files by torchcodec, an optional reader behind the interface of `uniflow.data.video.files`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uniflow.core.errors import one_line
from uniflow.core.files import open_regular
from uniflow.data.images.reading import MAX_PIXELS
from uniflow.data.video.files import (
    TOLERANCE,
    Frame,
    VideoBytes,
    VideoInfo,
    VideoReadError,
    VideoSource,
    container_kind,
    source_name,
)

PROBED = 2**20  # bytes from which libav guesses what a file is
# What libav takes for lists of addresses, which it would fetch: HLS, DASH, IMF, SDP.
LISTS = (b"#ext-x", b"<mpd", b"<compositionplaylist", b"c=in ip")
ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")


def import_torchcodec() -> Any:
    """torchcodec's decoders.

    Raises:
        ImportError: without it, or without FFmpeg's libraries, in one line.
    """
    try:
        import torchcodec
        from torchcodec import decoders
    except ImportError as error:
        raise ImportError(
            "backend: torchcodec needs torchcodec: pip install torchcodec, and FFmpeg's libraries; or set backend: pyav"
        ) from error
    except (RuntimeError, OSError) as error:  # releases before 0.17 look for the libraries at once
        raise ImportError(_no_libraries()) from error
    if getattr(torchcodec, "ffmpeg_major_version", 0) is None:
        raise ImportError(_no_libraries())
    return decoders


def _no_libraries() -> str:
    return (
        "torchcodec cannot load FFmpeg's shared libraries, or does not fit this torch: install FFmpeg 4 to 8 (apt "
        "install ffmpeg, conda install ffmpeg) and the torchcodec of this torch; or set backend: pyav"
    )


@contextmanager
def open_decoder(source: VideoSource, kind: str = "VideoDecoder", **options: Any) -> Iterator[Any]:
    """A decoder of torchcodec; nothing but this file is opened, whatever it says.

    Args:
        source: the video.
        kind: name of the decoder's class.
        options: of the decoder.

    Raises:
        VideoReadError: if it cannot be opened, is not a container of the kind that it is called, or breaks while it
            is read inside of the context.
        ImportError: as `import_torchcodec`.
    """
    decoders, name = import_torchcodec(), source_name(source)
    container = container_kind(name)
    try:
        with io.BytesIO(source.data) if isinstance(source, VideoBytes) else open_regular(source) as file:
            check_start(file.read(PROBED), container, name)
            file.seek(0)
            yield getattr(decoders, kind)(source.data if isinstance(source, VideoBytes) else file, **options)
    except VideoReadError:
        raise
    except OSError as error:
        raise VideoReadError(name, f"cannot be opened ({error.strerror or error})") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoReadError(name, f"cannot be read as {container} ({one_line(error, 200)})") from error


def check_start(start: bytes, container: str, name: str) -> None:
    """Refuse a file that libav could take for another kind than it is called: torchcodec lets it guess.

    Args:
        start: its first `PROBED` bytes.
        container: libav's name of the container that it should be.
        name: of the file.

    Raises:
        VideoReadError: if it is empty, begins otherwise than such a container does, or like a list of addresses.
    """
    if not start:
        raise VideoReadError(name, "the file is empty")
    known = {
        "mov": start[:1] == b"\0" and start[4:8] in ATOMS,
        "avi": start[:4] == b"RIFF" and start[8:12] == b"AVI ",
        "matroska": start[:4] == b"\x1a\x45\xdf\xa3",
        "gif": start[:4] == b"GIF8",
    }
    text = start.partition(b"\0")[0].lower()  # what libav searches for words
    if not known[container] or any(word in text for word in LISTS):
        raise VideoReadError(name, f"cannot be read as {container} (it begins otherwise)")


def codec_info(source: VideoSource) -> VideoInfo:
    """What a video file's header says; errors as in `open_decoder`."""
    try:
        with open_decoder(source, "AudioDecoder"):
            sound = True
    except VideoReadError:
        sound = False
    with open_decoder(source, seek_mode="approximate") as decoder:
        about = decoder.metadata
        rate, frames, seconds = _rate(about), about.num_frames_from_header, about.duration_seconds_from_header
        if frames is None and seconds is None and not sound:  # of sound, too, it may be longer than the pictures
            seconds = about.duration_seconds
        if frames is None and seconds is not None:
            frames = round(seconds * rate)
    return VideoInfo(rate, frames, sound)


def codec_frames(source: VideoSource, start: float = 0.0, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """The frames of a video file from the time `start` on, upright, one in memory at a time.

    The whole file is scanned first, so that every frame has its true time; arguments and errors are those of
    `uniflow.data.video.files.file_frames`.
    """
    name = source_name(source)
    with open_decoder(source, seek_mode="exact") as decoder:
        about, rate = decoder.metadata, _rate(decoder.metadata)
        width, height = about.width or 0, about.height or 0
        if width * height > max_pixels:
            raise VideoReadError(name, f"{width} x {height} pixels, more than {max_pixels:,} in all (max_pixels)")
        if not len(decoder):
            raise VideoReadError(name, "not one frame can be decoded")
        origin = about.begin_stream_seconds or 0.0
        first = min(max(0, int(start * rate) - 1), len(decoder) - 1)
        if first and decoder.get_frame_at(first).pts_seconds - origin > start:  # an uneven rate
            first = 0
        size = None
        for number in range(first, len(decoder)):
            frame = decoder.get_frame_at(number)
            if size not in (None, frame.data.shape):
                raise VideoReadError(
                    name, f"frame {number} has another size than the first: {tuple(frame.data.shape[1:])}"
                )
            size, time = frame.data.shape, frame.pts_seconds - origin
            if time >= start - 0.5 / rate:
                yield Frame(time, frame.data.contiguous())
        promised = codec_info(source).frames
        if promised is not None and len(decoder) < promised * (1 - TOLERANCE) - 1:
            raise VideoReadError(name, f"breaks off after {len(decoder)} of {promised} frames")


def _rate(about: Any) -> float:
    rate = about.average_fps or 25
    return float(rate) if 0 < rate < 1000 else 25.0
