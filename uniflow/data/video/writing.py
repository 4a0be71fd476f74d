"""Clips to MP4 files: H.264, with the sound of another file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.data.video.files import import_av, open_container

CLOCK = 90_000  # ticks a second of frames' times
# What players expect in an MP4; other sound, such as a camera's uncompressed one, is encoded as AAC.
COPIED = frozenset({"aac", "ac3", "eac3", "mp3", "opus", "alac"})


class VideoWriter:
    """Writes frames to an MP4 file (H.264, 4:2:0), one at a time; a context manager.

    Odd sides get one more row or column by repeating the edge: 4:2:0 needs even ones.

    Args:
        path: the file; `.mp4` need not be its end.
        rate: frames a second, what players show; frames have their own times.
        sound_of: a video file whose first sound track is kept, as long as frames are written; None is silence.
        quality: x264's constant rate factor; 0 is lossless, 51 worst.

    Attributes:
        fault: what was wrong with the sound, whose rest is left out then; None if nothing.

    Raises:
        ValueError: for a quality out of range.
        ImportError: without PyAV.
    """

    def __init__(self, path: Path, rate: float, sound_of: Path | None = None, quality: int = 16) -> None:
        if not 0 <= quality <= 51:
            raise ValueError(f"VideoWriter: quality must be in 0 ... 51, not {quality}")
        self._av = import_av()
        self.path, self.rate, self.sound_of, self.quality = path, rate, sound_of, quality
        self.fault: str | None = None
        self._stack = ExitStack()
        self._output: Any = None
        self._stream: Any = None
        self._packets: Iterator[tuple[float, Any]] = iter(())
        self._waiting: tuple[float, Any] | None = None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None and self._output is not None:
                self._sound_until(self._last / CLOCK + 1 / self.rate)
                self._output.mux(self._stream.encode(None))

    def write(self, image: Tensor, time: float) -> None:
        """Add a frame, uint8 (3, H, W), that is shown from `time` seconds on; times have to rise."""
        height, width = image.shape[-2:]
        if height % 2 or width % 2:
            image = F.pad(image[None].float(), (0, width % 2, 0, height % 2), mode="replicate")[0].byte()
        if self._output is None:
            self._open(image.shape[-2], image.shape[-1])
        self._last = max(self._last + 1, round(time * CLOCK))
        frame = self._av.VideoFrame.from_ndarray(image.permute(1, 2, 0).cpu().contiguous().numpy(), format="rgb24")
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._sound_until(time)
        self._output.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        output = self._stack.enter_context(self._av.open(str(self.path), "w", format="mp4"))
        rate = Fraction(self.rate).limit_denominator(1001)
        stream = output.add_stream("libx264", rate=rate, options={"crf": str(self.quality), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        self._output, self._stream = output, stream
        if self.sound_of is not None:
            source = self._stack.enter_context(open_container(self.sound_of))
            if source.streams.audio and source.streams.audio[0].codec_context is None:
                self.fault = "a code that libav does not know"
            elif source.streams.audio:
                self._packets = self._sound(source)
                self._waiting = (0.0, None)

    def _sound_until(self, time: float) -> None:
        """Write the packets of sound that begin before `time`."""
        try:
            while self._waiting is not None and self._waiting[0] < time:
                if self._waiting[1] is not None:
                    self._output.mux(self._waiting[1])
                self._waiting = next(self._packets, None)
        except self._av.error.FFmpegError as error:
            self.fault, self._waiting = one_line(error, 200), None

    def _sound(self, source: Any) -> Iterator[tuple[float, Any]]:
        """Packets for the output with their times; the output's stream is made at once."""
        track = source.streams.audio[0]
        # Frames' times begin with the first frame, so those of the sound do, too.
        origin = Fraction(0)
        for pictures in source.streams.video[:1]:
            origin = (pictures.start_time or 0) * pictures.time_base
        if track.codec_context.name in COPIED:
            return self._copied(source, track, self._output.add_stream_from_template(track), origin)
        layout = "mono" if track.codec_context.channels == 1 else "stereo"
        encoder = self._output.add_stream("aac", rate=track.codec_context.sample_rate, layout=layout)
        return self._encoded(source, track, encoder, origin)

    @staticmethod
    def _copied(source: Any, track: Any, target: Any, origin: Fraction) -> Iterator[tuple[float, Any]]:
        shift = round(origin / track.time_base)
        for packet in source.demux(track):
            if packet.dts is None:  # the last one, which is empty
                continue
            time = float(packet.dts * packet.time_base - origin)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            packet.stream = target
            yield time, packet

    def _encoded(self, source: Any, track: Any, encoder: Any, origin: Fraction) -> Iterator[tuple[float, Any]]:
        context = encoder.codec_context
        resampler = self._av.AudioResampler(context.format, context.layout, context.sample_rate)
        for frame in source.decode(track):
            if frame.pts is not None:
                frame.pts -= round(origin / frame.time_base)
            for part in resampler.resample(frame):
                yield from self._timed(encoder.encode(part))
        for part in resampler.resample(None):
            yield from self._timed(encoder.encode(part))
        yield from self._timed(encoder.encode(None))

    @staticmethod
    def _timed(packets: list[Any]) -> Iterator[tuple[float, Any]]:
        for packet in packets:
            yield float(packet.dts * packet.time_base), packet
