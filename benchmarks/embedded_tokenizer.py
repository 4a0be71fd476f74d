"""The tokenizer in the package, uniflow/pretrained/embedded: makes its training pictures, fits, measures, packages.

The training pictures are photographs (benchmarks/real_parts.py fetches them) at several sizes, cut into tiles, and
rendered scenes. Photographs of the folder `test` are only measured on.

    python benchmarks/embedded_tokenizer.py --photographs data/real/photographs --out runs/embedded_tokenizer

Options that are not listed go to `uniflow fit`. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from uniflow import Tokenizer
from uniflow.cli import main as uniflow
from uniflow.core.atomic import replacing
from uniflow.data.images.folder import list_images
from uniflow.data.images.reading import read_image
from uniflow.data.images.transforms import CenterCrop, resize_short_side
from uniflow.data.scenes import ScenesDataset
from uniflow.metrics import image_digests, noise_for, psnr
from uniflow.tokenizer.saving import write_directory

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "recipes" / "embedded_tokenizer.yaml"
PACKAGED = ROOT / "uniflow" / "pretrained" / "embedded"
SIDES = (160, 256, 400, 720)  # short sides that a photograph is brought to, where it is not smaller
TILE = 256  # side of the tiles that they are cut into
TILES = 6  # most tiles of a photograph at one size
SCENES, SCENE_SIDES = 300, (128, 256)
OWN_SIZE = 256  # side in pixels that the packaged encoder names as its own
POSITIONS = "encoder.model.pos_embed"
SIZES = (64, 128, 256, 512)  # of the squares that are measured on
WIDE = (192, 320)  # height and width of the picture that is not square


def main(argv: Sequence[str] | None = None) -> int:
    """Run it all; 2 for input that the user can put right, with one line on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded_tokenizer"), help="folder of pictures and run")
    parser.add_argument("--package", type=Path, default=PACKAGED, help=f"folder of the result ({PACKAGED})")
    options, further = parser.parse_known_args(argv)
    try:
        print(json.dumps(run(options, further)))
    except (ValueError, OSError) as error:
        print(f"embedded_tokenizer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace, further: Sequence[str] = ()) -> dict[str, Any]:
    """Make the pictures, fit, package, measure; the numbers are those of the packaged tokenizer.

    Raises:
        ValueError: if there are no photographs.
    """
    pictures, fitted = options.out / "pictures", options.out / "run"
    if not pictures.is_dir():
        make_pictures(options.photographs, pictures)
    _uniflow("fit", "-c", str(RECIPE), "--data.root", str(pictures), *further, "--run", str(fitted),
             "--ckpt_path", "auto")  # fmt: skip
    package(fitted / "tokenizer", options.package)
    results = measure(Tokenizer.from_pretrained(options.package), options.photographs / "test")
    with replacing(options.out / "results.json") as new:
        new.write_text(json.dumps(results, indent=2) + "\n")
    return results


def _uniflow(*arguments: str) -> None:
    print(f"\n$ uniflow {shlex.join(arguments)}", flush=True)
    if code := uniflow(arguments):
        sys.exit(code)


def make_pictures(photographs: Path, target: Path) -> None:
    """Write OUT/train, tiles of the training photographs and scenes, and OUT/val and OUT/test, the photographs whole.

    Raises:
        ValueError: if a split has no photographs.
    """
    with replacing(target) as new:
        for split in ("train", "val", "test"):
            names = list_images(photographs / split) if (photographs / split).is_dir() else []
            if not names:
                raise ValueError(f"no photographs in {photographs / split}; python benchmarks/real_parts.py DIR")
            (new / split).mkdir(parents=True)
            for name in names:
                image = read_image(photographs / split / name)
                for place, part in enumerate(tiles(image) if split == "train" else [image]):
                    _save(part, new / split / f"{Path(name).stem}_{place:02d}.jpg")
        for side in SCENE_SIDES:
            scenes = ScenesDataset(seed=2, length=SCENES // len(SCENE_SIDES), size=side)  # encoders saw seeds 0 and 1
            for number in range(len(scenes)):
                _save(scenes[number]["image"], new / "train" / f"scene_{side}_{number:03d}.jpg")


def tiles(image: Tensor) -> Iterator[Tensor]:
    """A photograph uint8 (3, H, W) at several sizes, each cut into a few tiles, evenly spread."""
    short = min(image.shape[-2:])
    for side in sorted({min(side, short) for side in SIDES}):
        resized = resize_short_side(image, side)
        height, width = resized.shape[-2:]
        corners = [
            (y, x)
            for y in range(0, max(1, height - TILE // 2), TILE)
            for x in range(0, max(1, width - TILE // 2), TILE)
        ]
        for y, x in corners[:: -(-len(corners) // TILES)]:
            top, left = max(0, min(y, height - TILE)), max(0, min(x, width - TILE))
            yield resized[:, top : top + TILE, left : left + TILE]


def _save(image: Tensor, path: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)


def package(tokenizer: Path, target: Path) -> None:
    """Write a tokenizer's folder anew: float16 weights, an encoder made for `OWN_SIZE`. A card that is there stays.

    The encoder's position embedding is resampled to the grid of `OWN_SIZE`, as the encoder itself does for pictures of
    that size; it is what tools take where they are told no size.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    model = Tokenizer.from_pretrained(tokenizer)
    config, state = model.config(), dict(model.state_dict())
    config["encoder"]["init_args"]["image_size"] = OWN_SIZE
    grid = [OWN_SIZE // model.encoder.spec.patch_size] * 2
    state[POSITIONS] = resample_abs_pos_embed(state[POSITIONS], grid, num_prefix_tokens=1)
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if large := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{large[0]} does not fit into float16")
    write_directory(target, config, state)
    Tokenizer.from_pretrained(target)  # says what does not fit


@torch.inference_mode()
def measure(tokenizer: Tokenizer, photographs: Path) -> dict[str, Any]:
    """PSNR in dB, one step, mean over the photographs: their central squares at each size, and a size not square.

    "psnr_SIZE_in_quarters" is of the same squares, each quarter encoded and painted alone: the same pixels at half the
    size. What it is above "psnr_SIZE" is what the larger size costs.
    """
    images = [read_image(photographs / name) for name in list_images(photographs)]
    results: dict[str, Any] = {"photographs": len(images)}
    for size in SIZES:
        squares = [CenterCrop(size)(image) for image in images]
        results[f"psnr_{size}"] = _mean_psnr(tokenizer, squares)
        if size > min(SIZES):
            results[f"psnr_{size}_in_quarters"] = _mean_psnr(tokenizer, squares, parts=2)
    wide = [CenterCrop(max(WIDE))(image)[:, : WIDE[0], : WIDE[1]] for image in images]
    results[f"psnr_{WIDE[0]}x{WIDE[1]}"] = _mean_psnr(tokenizer, wide)
    return results


def _mean_psnr(tokenizer: Tokenizer, images: Sequence[Tensor], parts: int = 1) -> float:
    total = 0.0
    for image in images:
        noise = noise_for(image_digests(image[None]), image.shape)
        rows = [
            torch.cat([_paint(tokenizer, *column) for column in zip(*_split(row, parts, -1), strict=True)], dim=-1)
            for row in zip(*_split((image[None], noise), parts, -2), strict=True)
        ]
        total += float(psnr(torch.cat(rows, dim=-2), image[None].float() / 255))
    return round(total / len(images), 2)


def _split(tensors: Sequence[Tensor], parts: int, dim: int) -> list[Sequence[Tensor]]:
    return [tensor.chunk(parts, dim=dim) for tensor in tensors]


def _paint(tokenizer: Tokenizer, images: Tensor, noise: Tensor) -> Tensor:
    return tokenizer.reconstruct(images, steps=1, noise=noise).float()


if __name__ == "__main__":
    sys.exit(main())
