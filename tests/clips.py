"""Short clips for tests: their frames are known, and files are written by PyAV alone."""

from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image

GREYS = 16  # frame k has the grey value 16 k


def stairs(count=12, height=48, width=64):
    """Frames (T, 3, H, W) whose grey value counts up, with a red left half."""
    frames = torch.arange(count, dtype=torch.uint8).mul(GREYS).view(-1, 1, 1, 1).repeat(1, 3, height, width)
    frames[:, 0, :, : width // 2] = 255
    return frames


def write_clip(path, frames, rate=10, codec="libx264", sound=None):
    """A video file of uint8 frames (T, 3, H, W), nearly without loss; `sound`: codec of a second track, a tone."""
    with av.open(str(path), "w") as container:
        pixel_format = {"libx264": "yuv444p", "mpeg4": "yuv420p", "libvpx-vp9": "yuv420p"}[codec]
        options = {"qmin": "1", "qmax": "2"} if codec == "mpeg4" else {"crf": "4"}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], pixel_format
        tone = container.add_stream(sound, rate=48000) if sound else None
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if tone is not None:
            for packet in _tone(tone, len(frames) / rate):
                container.mux(packet)
    return path


def _tone(stream, seconds):
    wave = np.sin(np.arange(int(48000 * seconds)) * 0.05).astype(np.float32)
    for start in range(0, len(wave), 1024):
        part = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
        resampled = av.AudioResampler(stream.format, stream.layout, 48000).resample(part)
        yield from (packet for piece in resampled for packet in stream.encode(piece))
    yield from stream.encode(None)


def write_folder(folder, frames):
    """A folder of frames whose names sort wrongly as text."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"frame{number}.png")
    return folder


def grey_of(frames):
    """The number of each frame of `stairs`, from its right half."""
    return [round(frame[1].float()[..., frame.shape[-1] * 3 // 4 :].mean().item() / GREYS) for frame in frames]
