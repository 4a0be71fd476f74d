"""A filmstrip: a clip, its reconstructions, and how much they change where the original does not.

python benchmarks/video_strip.py film.mp4 docs/images/video.png --tokenizers embedded runs/clips/tokenizer
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from uniflow import Tokenizer
from uniflow.core.pixels import to_unit_range
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.video.reading import read_frames
from uniflow.metrics.video import STATIC, ClipScores
from uniflow.pictures.drawing import captioned_sheet, heat_map

GAIN = 16.0  # a change of 1 / GAIN of the range is white


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--tokenizers", nargs="+", default=["embedded"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    frames = [frame.image for frame in read_frames(options.clip, start=options.start, length=options.frames)]
    original = to_unit_range(torch.stack([resize_short_side(frame, options.size) for frame in frames]))
    rows = [[(f"original, frame {k}", original[k]) for k in options.columns]]
    for path in options.tokenizers:
        decoded = decode(Tokenizer.from_pretrained(path), original)
        scores = ClipScores()
        scores.update(decoded, original)
        found = scores.compute()
        print(f"{path}: {found}")
        name = Path(path).parent.name if Path(path).name == "tokenizer" else Path(path).name
        rows.append([(f"{name}: PSNR {found['psnr']:.2f} dB", decoded[k]) for k in options.columns])
        changes = static_changes(decoded, original)
        caption = f"its flicker: {found['flicker']:.2f} of 255"
        rows.append([(caption, heat_map(changes[k - 1] * GAIN)) for k in options.columns])
    captioned_sheet(rows, side=192).quantize(128).save(options.picture, optimize=True)


@torch.inference_mode()
def decode(model: Tokenizer, original: Tensor) -> Tensor:
    """The clip (T, 3, H, W) in [0, 1] as the tokenizer decodes it, all frames from one noise."""
    with model.over_time(len(original)):
        latents = model.encode(original)
        noise = model.decoder.draw_noise(latents[:1], torch.Generator().manual_seed(0))
        decoded = model.decode(latents, noise=None if noise is None else noise.expand(len(original), -1, -1, -1))
    return decoded[..., : original.shape[-2], : original.shape[-1]].float()


def static_changes(decoded: Tensor, original: Tensor) -> Tensor:
    """Mean absolute change of each pixel from the frame before, 0 where the original changes, (T - 1, H, W)."""
    still = original.diff(dim=0).abs().amax(dim=1) * 255 <= STATIC + 1e-3
    return decoded.diff(dim=0).abs().mean(dim=1) * still


if __name__ == "__main__":
    main()
