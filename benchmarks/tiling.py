"""Peak memory of decoding by tiles against decoding at once, and how far the pictures lie apart: one JSON line each.

Every measurement has a process of its own; its peak is Linux's VmHWM above that of a small picture.

    python benchmarks/tiling.py    # --decoder flow --size 2048 --tile 32
    python benchmarks/tiling.py --decoder flow --size 2048 --tile 32 --global_context
    python benchmarks/tiling.py --decoder conv --size 1024 --tile 16
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import emit, row
from uniflow.core.specs import LatentSpec
from uniflow.decoders import ConvDecoder, PatchFlowDecoder, PixelDecoder, ViTDecoder
from uniflow.tokenizer.tiling import decode_tiled

SPEC = LatentSpec(channels=16, patch_size=16)
# Decoder, side of the picture in pixels, side of a tile in latents, global context.
CASE = ("flow", 2048, 32, False)


def build(name: str) -> PixelDecoder:
    """A decoder of medium size with random weights, the same in each process."""
    torch.manual_seed(0)
    decoder: PixelDecoder
    if name == "flow":
        decoder = PatchFlowDecoder(SPEC, width=512, global_depth=2, num_heads=8, flow_depth=4, prediction="data")
    elif name == "vit":
        decoder = ViTDecoder(SPEC, width=512, depth=4, num_heads=8)
    else:
        decoder = ConvDecoder(SPEC, width=128, min_width=64, depth=1)
    for parameter in decoder.parameters():  # layers that start as zero would hide everything
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return decoder.eval()


def peak_mib() -> float:
    """The largest resident memory that this process ever had."""
    match = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


@torch.inference_mode()
def measure(name: str, size: int, tile: int, global_context: bool, out: Path) -> None:
    """Decode one picture, 0 for `tile` meaning at once; write it to `out` and print the peak."""
    decoder, side = build(name), size // SPEC.patch_size
    latents = torch.randn(1, SPEC.channels, side, side, generator=torch.Generator().manual_seed(1))
    decode_tiled(decoder, latents[..., :4, :4], tile=4)
    before = peak_mib()
    noise = torch.Generator().manual_seed(2)
    if tile:
        image = decode_tiled(decoder, latents, tile=tile, global_context=global_context, generator=noise)
    else:
        image = decoder.decode(latents, generator=noise)
    print(json.dumps(peak_mib() - before))
    torch.save(image, out)


def run(name: str, size: int, tile: int, global_context: bool, out: Path) -> float:
    """`measure` in a process of its own; the peak in MiB."""
    command = [sys.executable, __file__, "--decoder", name, "--size", str(size), "--tile", str(tile), "--out", str(out)]
    command += ["--global_context"] * global_context
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(name: str, size: int, tile: int, global_context: bool) -> dict[str, Any]:
    """The row of one case."""
    with tempfile.TemporaryDirectory() as folder:
        whole, tiled = Path(folder, "whole.pt"), Path(folder, "tiled.pt")
        at_once = run(name, size, 0, False, whole)
        by_tiles = run(name, size, tile, global_context, tiled)
        images = [torch.load(path, weights_only=True) for path in (whole, tiled)]
    difference = (images[0] - images[1]).abs()
    context = ", global context" if global_context else ""
    return row(
        f"peak memory of decoding, {name}, {size} px, tiles of {tile} latents{context}",
        by_tiles,
        "MiB above a small picture's",
        "the whole picture at once",
        by_tiles / at_once,
        baseline_value=round(at_once),
        largest_difference=float(f"{difference.max():.2g}"),
        mean_difference=float(f"{difference.mean():.2g}"),
        spread_of_the_picture=float(f"{images[0].std():.2g}"),
    )


def main() -> None:
    """Measure both ways, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", choices=["flow", "vit", "conv"], help="default: the first case above")
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--tile", type=int, default=16, help="side of a tile in latents of 16 pixels")
    parser.add_argument("--global_context", action="store_true", help="see `uniflow.tokenizer.tiling`")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one = (options.decoder, options.size, options.tile, options.global_context)
    if options.out is not None:
        measure(*one, options.out)
        return
    emit(compare(*(one if options.decoder else CASE)))


if __name__ == "__main__":
    main()
