"""Whether a generator draws what it is told: is the drawing of a name more like the real one than like the others?

    python benchmarks/openmoji_names.py --generator runs/openmoji/generator --real data/real

For names of the training drawings and for those that were held out, a drawing is generated for each name, and all real
drawings of these names are ranked by their likeness to it: the cosine of DINOv2's mean patch token. One line of JSON a
row: the share of names whose own drawing comes first, and among the first five. Without the name (guidance 0) the same
is chance. The judge is the encoder whose latents are generated, so it is not an independent one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import normalize

from uniflow.data.images.reading import read_image
from uniflow.data.images.transforms import CenterCrop
from uniflow.encoders import DINOv2
from uniflow.generators import Generator


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, rank and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, help="folder of a generator trained by openmoji_text_dit.yaml")
    parser.add_argument("--real", type=Path, default=Path("data/real"), help="folder that `make openmoji` made")
    parser.add_argument("--names", type=int, default=119, help="of each split")
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0, 0.0], help="0: without the name")
    parser.add_argument("--steps", type=int, help="of the sampler; its own number by default")
    options = parser.parse_args(argv)
    generator = Generator.from_pretrained(options.generator)
    judge = DINOv2("s14", weights=str(options.real / "dinov2_s14.safetensors"), image_size=224, tune="frozen").eval()
    for split in ("train", "test"):
        names, drawings = read(options.real / "openmoji" / split, options.names)
        real = features(judge, drawings)
        for guidance in options.guidance:
            made = generator.sample(names, seed=0, steps=options.steps, guidance=guidance)
            ranks = own_ranks(features(judge, made), real)
            row = {"split": split, "names": len(names), "guidance": guidance}
            row |= {f"first_{k}": round(float((ranks < k).float().mean()), 3) for k in (1, 5)}
            print(json.dumps({**row, "median_rank": int(ranks.median()) + 1, "chance": round(1 / len(names), 4)}))
    return 0


def read(folder: Path, count: int) -> tuple[list[str], Tensor]:
    """Evenly spaced drawings of a folder: names, and images (N, 3, 224, 224) in [0, 1]."""
    files = sorted(folder.glob("*.png"))
    files = [files[len(files) * i // min(count, len(files))] for i in range(min(count, len(files)))]
    names = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    return names, torch.stack([read_image(file) for file in files]) / 255


@torch.inference_mode()
def features(judge: DINOv2, images: Tensor) -> Tensor:
    """Unit vectors (N, D) of images (N, 3, H, W) in [0, 1]."""
    shape = CenterCrop(112)
    small = [shape((image * 255).round().to(torch.uint8)) for image in images]  # all at one size
    tokens = [judge(part).hidden_states[-1].mean(dim=1) for part in torch.stack(small).split(32)]
    return normalize(torch.cat(tokens), dim=-1)


def own_ranks(made: Tensor, real: Tensor) -> Tensor:
    """For each generated drawing how many real ones are more like it than its own, (N,)."""
    likeness = made @ (real - real.mean(dim=0)).T
    return (likeness > likeness.diagonal()[:, None]).sum(dim=1)


if __name__ == "__main__":
    sys.exit(main())
