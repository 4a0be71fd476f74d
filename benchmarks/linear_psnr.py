"""How much of the picture each layer of an embedded encoder keeps: linear PSNR at rank 64, one JSON line an encoder.

Scenes: 600 to fit on, 200 held out, of a seed that no training uses. Photographs: 64-pixel crops at a short side of 256
and of 512 pixels, 8 each of every file of FOLDER/train to fit on, and of FOLDER/test.

    python benchmarks/linear_psnr.py
    python benchmarks/linear_psnr.py --photographs FOLDER --encoder EmbeddedViT --weights RUN/encoder.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/linear_psnr.py`

import torch
from torch import Tensor

import uniflow.encoders
from uniflow.data.images.folder import list_images
from uniflow.data.images.reading import read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.scenes import ScenesDataset
from uniflow.encoders import VisionEncoder
from uniflow.metrics import linear_psnr

SIDE = 64
SHORT_SIDES = (256, 512)


def scenes(stream: int, length: int) -> Tensor:
    dataset = ScenesDataset(12345, length, SIDE, stream=stream)
    return torch.stack([dataset[number]["image"] for number in range(length)])


def crops(folder: Path, each: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in list_images(folder):
        for short_side in SHORT_SIDES:
            image = resize_short_side(read_image(folder / name, name), short_side)
            for _ in range(each):
                top, left = (int(torch.randint(n - SIDE + 1, (), generator=generator)) for n in image.shape[-2:])
                found.append(image[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(found)


@torch.no_grad()
def by_layer(encoder: VisionEncoder, train: Tensor, test: Tensor) -> list[float]:
    fitted, held_out = (
        [torch.cat(layer) for layer in zip(*(encoder(part).hidden_states for part in images.split(100)), strict=True)]
        for images in (train, test)
    )
    size = encoder.spec.patch_size
    return [
        round(linear_psnr(x, train, x_test, test, patch_size=size), 1)
        for x, x_test in zip(fitted, held_out, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="*", default=["SceneViT", "EmbeddedViT"])
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--photographs", type=Path)
    arguments = parser.parse_args()
    sources = {"scenes": (scenes(201, 600), scenes(202, 200))}
    if arguments.photographs:
        sources["photographs"] = (crops(arguments.photographs / "train"), crops(arguments.photographs / "test"))
    for name in arguments.encoder:
        encoder = getattr(uniflow.encoders, name)(weights=arguments.weights).eval()
        print(
            json.dumps({"encoder": name} | {key: by_layer(encoder, *part) for key, part in sources.items()}), flush=True
        )


if __name__ == "__main__":
    main()
