"""The main job on real photographs: those that scikit-image and scikit-learn ship (extra `dev`).

Cuts them into crops, packs the crops into shards with some photographs held out whole, adapts the embedded encoder,
tests and reconstructs. Every step is an ordinary `uniflow` command, printed before it runs.

    python benchmarks/photos.py [--out runs/photos] [--steps 14000]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from uniflow import Tokenizer
from uniflow.cli import main
from uniflow.data import WebDataset
from uniflow.pictures.drawing import rows_to_grid, save_picture

HELD_OUT = ("chelsea", "coffee", "china")
VALIDATION = ("rocket",)


def run(*arguments: str) -> None:
    print(f"\n$ uniflow {shlex.join(arguments)}", flush=True)
    if code := main(arguments):
        sys.exit(code)


def photos(out: Path, steps: int, workers: int) -> None:
    pictures, shards, results = out / "pictures", out / "shards", out / "run"
    if not pictures.is_dir():
        run("photos", str(pictures))
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    held_out = [path for path in files if path.stem in HELD_OUT]
    if len(held_out) != len(HELD_OUT):
        sys.exit(f"expected the photographs {', '.join(HELD_OUT)} in {pictures}, found {[p.name for p in files]}")
    if not shards.is_dir():
        names, validation = (json.dumps([p.name for p in files if p.stem in group]) for group in (HELD_OUT, VALIDATION))
        run("pack", str(pictures), str(shards), "--crop_size", "64", "--crops_per_image", "500",
            "--hold_out", names, "--validation", validation)  # fmt: skip
    run("fit", "-c", "configs/recipes/photos.yaml", "--run", str(results), "--trainer.max_steps", str(steps),
        "--data.train", f"{shards}/train-*.tar", "--data.val", f"{shards}/val-*.tar", "--data.test",
        f"{shards}/test-*.tar", "--data.num_workers", str(workers))  # fmt: skip
    run("test", "-c", str(results / "config.yaml"), "--ckpt_path", str(results / "last.ckpt"))
    run("reconstruct", *map(str, held_out), "--tokenizer", str(results / "tokenizer"), "--size", "128",
        "--out", str(out / "reconstructions"))  # fmt: skip
    draw(results / "tokenizer", shards, out / "photos.png")


@torch.inference_mode()
def draw(tokenizer: Path, shards: Path, target: Path, count: int = 8) -> None:
    """Crops of the held-out photographs, evenly spread over the test split, above their reconstructions."""
    data = WebDataset(*[f"{shards}/{split}-*.tar" for split in ("train", "val", "test")], size=64, num_workers=0)
    crops = torch.cat([batch["image"] for batch in data.test_dataloader()])
    chosen = crops[:: len(crops) // count][:count]
    painted = Tokenizer.from_pretrained(tokenizer).reconstruct(chosen, noise=torch.zeros(chosen.shape))
    save_picture(rows_to_grid([chosen.float() / 255, painted], scale=2), target)
    print(f"picture: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    photos(arguments.out, arguments.steps, arguments.workers)
