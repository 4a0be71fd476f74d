"""Seconds until held-out photographs reach 25, 27 and 29 dB: the recipe for a real encoder against what it leaves out.

    python benchmarks/real_parts.py data/real
    python benchmarks/time_to_quality.py --encoder data/real/dinov2_s14.safetensors \\
        --photographs data/real/photographs --steps 240 --out runs/time_to_quality

Every variant of configs/recipes/real.yaml trains for the same number of steps, on one thread, and is judged on the
validation split every tenth of them. Time is that of training, the start included, without validation. Writes
OUT/time_to_quality.json, .md and .png; a variant that is there already is not run again. Options that are not listed
go to `uniflow fit`.
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

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "recipes" / "real.yaml"
BASELINE = "recipe"
LEVELS = (25.0, 27.0, 29.0)  # dB
POINTS = 10  # validations of a run
RANDOM = ["--model.start", "random", "--model.latent_feature_weight", "0"]
SHORTCUTS = ["--model.bottleneck.shortcut", "false", "--model.decoder.shortcut", "false"]
VARIANTS = {
    BASELINE: [],
    "recipe, states from a cache": ["--model.state_cache", "StateCache", "--data.crops_per_image", "4"],
    "without regression start": RANDOM,
    "last layer, random start": ["--model.bottleneck.layers", "last", *SHORTCUTS, *RANDOM],
    "frozen, last 4 layers summed": ["--model.bottleneck.layers", "4", "--model.bottleneck.fuse", "sum"],
    "LoRA": ["--model.encoder.tune", "lora"],
    "full tuning": ["--model.encoder.tune", "full"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every variant; 2 for input that the user can put right, with one line on stderr."""
    options, further = _parser().parse_known_args(argv)
    if unknown := sorted(set(options.only or []) - set(VARIANTS)):
        print(f"time_to_quality: error: no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    if options.steps < POINTS:
        print(f"time_to_quality: error: --steps must be at least {POINTS}", file=sys.stderr)
        return 2
    results = {}
    for name in options.only or VARIANTS:
        folder = options.out / name.replace(", ", "_").replace(" ", "_")
        if not (folder / "test_results.json").is_file() and (code := run(options, VARIANTS[name], folder, further)):
            return code
        results[name] = read(folder, options.clock)
    write(results, options.out)
    print(json.dumps(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--encoder", type=Path, required=True, help="the encoder's weights")
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--steps", type=int, default=240, help="of each variant (240)")
    parser.add_argument("--only", action="append", help="a variant to run; may be given several times")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a busy machine without a GPU")
    parser.add_argument("--config", type=Path, default=RECIPE, help="the recipe (configs/recipes/real.yaml)")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"), help="folder of runs and results")
    return parser


def run(options: argparse.Namespace, variant: Sequence[str], folder: Path, further: Sequence[str]) -> int:
    """Fit and test one variant on one thread; its exit code."""
    torch.set_num_threads(1)
    every = str(options.steps // POINTS)
    cached = ["--model.state_cache.folder", str(options.out / "states")] if "--model.state_cache" in variant else []
    fit = [
        *("fit", "-c", str(options.config), "--run", str(folder), *variant, *cached),
        *("--model.encoder.weights", str(options.encoder), "--data.root", str(options.photographs)),
        *("--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", every),
        *("--model.eval_steps", "[1]", "--images", "null", "--statistics", "null", "--best_checkpoint", "null"),
        *("--trainer.callbacks+", "benchmarks.real_callbacks.Progress", *further),
    ]
    test = ["test", "-c", str(folder / "config.yaml"), "--ckpt_path", "last"]
    return uniflow(fit) or uniflow(test)


def read(folder: Path, clock: str) -> dict[str, Any]:
    """A run's progress, its first entry of at least each of `LEVELS` (None where there is none), and its end."""
    entries = json.loads((folder / "progress.json").read_text())
    progress = [{"seconds": e[clock], **{key: e[key] for key in ("images", "gflop", "psnr")}} for e in entries]
    tested = json.loads((folder / "test_results.json").read_text())
    first, last = progress[0], progress[-1]
    return {
        "progress": progress,
        "reached": {f"{level:g} dB": next((p for p in progress if p["psnr"] >= level), None) for level in LEVELS},
        "images_per_second": last["images"] / (last["seconds"] - first["seconds"]),
        "images_per_second_end": _rate(*progress[-2:]),
        "test_psnr": tested["test/psnr"],
        "cosine_last": tested[max(name for name in tested if name.startswith("test_layers/cosine_"))],
    }


def _rate(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    return (after["images"] - before["images"]) / (after["seconds"] - before["seconds"])


def write(results: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """The table and the plot."""
    heads = [f"{level:g} dB after s (images, TFLOP)" for level in LEVELS]
    heads += ["images/s over the recipe's: mean, last tenth", "test PSNR at the end, dB", "cosine, last layer"]
    lines = ["| " + " | ".join(["variant", *heads]) + " |", "|---" * (len(heads) + 1) + "|"]
    baseline = results.get(BASELINE, next(iter(results.values())))
    for name, result in results.items():
        cells = [_cell(point) for point in result["reached"].values()]
        rates = [result[rate] / baseline[rate] for rate in ("images_per_second", "images_per_second_end")]
        cells += [", ".join(f"{rate:.2f}" for rate in rates)]
        cells += [f"{result['test_psnr']:.2f}", f"{result['cosine_last']:.3f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    with replacing(out / "time_to_quality.md") as new:
        new.write_text("\n".join(lines) + "\n")
    with replacing(out / "time_to_quality.json") as new:
        new.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, out / "time_to_quality.png")


def _cell(point: Mapping[str, float] | None) -> str:
    if point is None:
        return "not reached"
    return f"{point['seconds']:.0f} ({point['images']}, {point['gflop'] / 1e3:.1f})"


def plot(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """PSNR against seconds of training, a line for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, result in results.items():
        points = result["progress"]
        axes.plot([p["seconds"] for p in points], [p["psnr"] for p in points], marker="o", markersize=3, label=name)
    axes.set_xlabel("seconds of training (one thread)")
    axes.set_ylabel("PSNR of held-out photographs, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
