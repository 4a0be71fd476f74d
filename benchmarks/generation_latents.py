"""Does distillation help generation? One small generator on the latents of four tokenizers, with one budget.

    python benchmarks/generation_latents.py --out runs/generation_latents

Each tokenizer is that of configs/quickstart.yaml, trained on Scenes: with distillation, with a frozen encoder, without
distillation, and without it with a Gaussian latent as autoencoders have it. Then the latents of the same scenes of one
object are stored, `configs/recipes/scenes_class_dit.yaml` is trained on them, and its images are judged. Writes
OUT/generation_latents.json and .md; what is there already is not run again. Options that are not listed go to the fit
of the generator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from uniflow.cli import main as uniflow
from uniflow.core.atomic import replacing

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NOT_DISTILLED = ["--model.distillation_weight", "0", "--model.latent_feature_weight", "0"]
VARIANTS = {
    "distilled": [],
    "frozen": ["--model.encoder.tune", "frozen"],
    "not distilled": NOT_DISTILLED,
    "not distilled, KL": [
        *NOT_DISTILLED,
        "--model.bottleneck",
        "{class_path: KLBottleneck, init_args: {channels: 64, layers: [0, 2, -1], shortcut: true, weight: 1.0e-6}}",
    ],
}
# Heading -> a number of the tokenizer's test ("test/...") or of the generator's.
TOKENIZER = {"PSNR, dB": "test/psnr", "probe of the latents": "test/probe_latent"}
GENERATOR = {"class accuracy": "test/accuracy", "Frechet": "test/frechet_scene_vit", "KID": "test/kid_scene_vit"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every variant; the exit code of a command that failed, and 2 for input that the user can put right."""
    options, further = _parser().parse_known_args(argv)
    if unknown := sorted(set(options.only or []) - set(VARIANTS)):
        print(f"generation_latents: error: no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    results = {}
    for name in options.only or VARIANTS:
        folder = options.out / name.replace(", ", "_").replace(" ", "_")
        if code := run(options, VARIANTS[name], folder, further):
            return code
        results[name] = [_read(folder / part) for part in ("tokenizer", "generator")]
        write(results, options.out)
    print(json.dumps(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", action="append", help="a variant to run; may be given several times")
    parser.add_argument("--images", type=int, default=16384, help="scenes that the generator sees, also mirrored")
    parser.add_argument("--held_out", type=int, default=384, help="scenes of validation and of test")
    parser.add_argument("--tokenizer_steps", type=int, default=300, help="of each tokenizer")
    parser.add_argument("--steps", type=int, default=1000, help="of each generator")
    parser.add_argument("--batch_size", type=int, default=64, help="of each generator")
    parser.add_argument("--precision", default="32-true", help="of both trainings")
    parser.add_argument("--out", type=Path, default=Path("runs/generation_latents"), help="folder of runs and results")
    return parser


def run(options: argparse.Namespace, variant: Sequence[str], folder: Path, further: Sequence[str]) -> int:
    """Tokenizer, latents, generator and its test; what is there already is left as it is."""
    tokenizer, latents, generator = (folder / part for part in ("tokenizer", "latents", "generator"))
    precision = ["--trainer.precision", options.precision]
    scenes = ["--data.size", "64", "--data.max_objects", "1", "--data.val_length", str(options.held_out)]
    count = str(options.images)
    commands = {
        tokenizer / "tokenizer": [
            *("fit", "-c", str(CONFIGS / "quickstart.yaml"), "--run", str(tokenizer), *variant, *precision),
            *("--trainer.max_steps", str(options.tokenizer_steps), "--trainer.val_check_interval", "null"),
            *("--trainer.limit_val_batches", "0", "--ckpt_path", "auto"),
        ],
        tokenizer / "test_results.json": ["test", "-c", str(tokenizer / "config.yaml"), "--ckpt_path", "last"],
        latents / "complete": [  # never there: `encode` itself knows what is missing
            *("encode", "--tokenizer", str(tokenizer / "tokenizer"), "--out", str(latents), "--flips"),
            *("--data", "Scenes", "--data.train_length", count, *scenes),
        ],
        generator / "generator": [
            *("fit", "-c", str(CONFIGS / "recipes" / "scenes_class_dit.yaml"), "--run", str(generator), *precision),
            *("--model.tokenizer", str(tokenizer / "tokenizer"), "--data", "CachedLatents"),
            *("--data.root", str(latents), "--data.batch_size", str(options.batch_size), "--data.num_workers", "0"),
            *("--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)),
            *("--ckpt_path", "auto", *further),
        ],
        generator / "test_results.json": [
            *("test", "-c", str(generator / "config.yaml"), "--ckpt_path", "last", "--data", "Scenes", *scenes),
            *("--data.test_length", str(options.held_out), "--images", "null"),
        ],
    }
    for made, words in commands.items():
        if not made.exists() and (code := uniflow(words)):
            return code
    return 0


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "test_results.json").read_text())


def write(results: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """The table: a row for each tokenizer, with a column for each strength of guidance."""
    _, first = next(iter(results.values()))
    suffixes = {g: f"_g{g:g}" if number else "" for number, g in enumerate(first["generation/guidance"])}
    columns = [f"{head}, guidance {g:g}" for head in GENERATOR for g in suffixes]
    heads = ["latents", *TOKENIZER, *columns]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, (tokenizer, generator) in results.items():
        cells = [f"{tokenizer[key]:.4g}" for key in TOKENIZER.values()]
        cells += [f"{generator[key + suffix]:.4g}" for key in GENERATOR.values() for suffix in suffixes.values()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    floors = ", ".join(f"{key} {first[key]:.4g}" for key in ("test/accuracy_real", "test/frechet_scene_vit_floor"))
    with replacing(out / "generation_latents.md") as new:
        new.write_text("\n".join([*lines, "", f"Real images: {floors}."]) + "\n")
    with replacing(out / "generation_latents.json") as new:
        new.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
