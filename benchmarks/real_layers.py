"""What the runs of configs/ablations/real_layers.yaml have kept of the teacher, as one table and one plot.

    python benchmarks/real_layers.py runs/ablations/real_layers --encoder data/real/dinov2_s14.safetensors \\
        --photographs data/real/photographs

Adds to each run's own numbers (PSNR, SSIM, cosine) what needs the training photographs and labels: R^2 of a linear map
from the latents to the teacher's last hidden state, k-NN and linear probe of the student's features, and the probe of
the mean latent. Writes FOLDER/real_layers.md and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.real import crop_size
from benchmarks.real_measures import (
    classify,
    crops,
    latents_and_targets,
    linear_r2,
    original_encoder,
    random_crops,
)
from uniflow import Tokenizer
from uniflow.ablation.plan import read_plan
from uniflow.core.atomic import replacing
from uniflow.metrics import linear_probe

ABLATION = Path(__file__).resolve().parents[1] / "configs" / "ablations" / "real_layers.yaml"
COLUMNS = {
    "psnr": ("PSNR, 1 step", "{:.2f} dB"),
    "psnr_steps4": ("4 steps", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "cosine": ("cosine, last layer", "{:.3f}"),
    "knn": ("k-NN", "{:.1%}"),
    "probe": ("probe", "{:.1%}"),
    "latent_probe": ("probe of the latents", "{:.1%}"),
    "latent_r2": ("R2 of the last layer from the latents", "{:.2f}"),
}
MARKERS = {"frozen": "o", "adaptive": "^", "no distillation": "v"}


@torch.inference_mode()
def measure(run: Path, encoder: Path, photographs: Path, labelled: Path) -> dict[str, float]:
    """The numbers of one finished run, by the keys of `COLUMNS`; kept in the run's folder."""
    kept = run / "real_layers.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    found = json.loads((run / "test_results.json").read_text())
    tokenizer, size = Tokenizer.from_pretrained(run / "tokenizer"), crop_size(run)
    teacher = original_encoder(tokenizer, encoder)
    train = latents_and_targets(tokenizer, teacher, random_crops(photographs / "train", size, count=2))
    test = latents_and_targets(tokenizer, teacher, crops(photographs / "test", size))
    last = max(name for name in found if name.startswith("test_layers/cosine_"))
    results = {
        "psnr": found["test/psnr"],
        "psnr_steps4": found["test/psnr_steps4"],
        "ssim": found["test/ssim"],
        "cosine": found[last],
        **classify(tokenizer.encoder, labelled, size),
        "latent_probe": latent_probe(tokenizer, labelled, size),
        "latent_r2": linear_r2(train, test),
    }
    with replacing(kept) as new:
        new.write_text(json.dumps(results) + "\n")
    return results


def latent_probe(tokenizer: Tokenizer, labelled: Path, size: int) -> float:
    """Accuracy in [0, 1] of a linear probe of the mean latent."""
    classes = sorted(path.name for path in (labelled / "train").iterdir() if path.is_dir())
    sets = []
    for split in ("train", "test"):
        pairs = [
            (tokenizer.encode(images).float().mean(dim=(2, 3)), torch.full((len(images),), number))
            for number, name in enumerate(classes)
            for images in crops(labelled / split / name, size)
        ]
        sets += [torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])]
    return linear_probe(*sets)


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table: a row a variant, means over seeds, with the spread where there are several."""
    lines = [
        "| variant | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, runs in results.items():
        cells = []
        for key, (_, form) in COLUMNS.items():
            values = [run[key] for run in runs]
            spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(form.format(statistics.mean(values)) + spread)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """PSNR against what latents and the student's features keep of the teacher; a row for each number of channels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reads = list(dict.fromkeys(name.split(", ")[0] for name in results))
    channels = [word for word in ("channels=64", "channels=16") if any(word in name for name in results)]
    figure, axes = plt.subplots(
        len(channels),
        2,
        figsize=(10, 4 * len(channels)),
        sharey="row",
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for row, word in zip(axes, channels, strict=True):
        shown = {name: runs for name, runs in results.items() if word in name}
        for axis, key in zip(row, ("latent_r2", "probe"), strict=True):
            for name, runs in shown.items():
                x, y = (statistics.mean(run[k] for run in runs) for k in (key, "psnr"))
                axis.scatter(max(x, -0.1), y, s=45, **_style(name, reads, plt.cm.tab10.colors))
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"PSNR, 1 step, dB ({word.partition('=')[2]} channels)")
    for axis, title in zip(axes[-1], (COLUMNS["latent_r2"][0], "probe of the student"), strict=True):
        axis.set_xlabel(title)
    handles = [
        plt.Line2D([], [], color=colour, marker="s", ls="", label=name)
        for name, colour in zip(reads, plt.cm.tab10.colors, strict=False)
    ]
    handles += [plt.Line2D([], [], color="k", marker=m, ls="", label=name) for name, m in MARKERS.items()]
    handles += [
        plt.Line2D([], [], color="k", marker="o", ls="", mfc=fill, label=f"start: {name}")
        for name, fill in (("regression", "k"), ("random", "none"))
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9)
    with replacing(file) as new:
        figure.savefig(new, dpi=110, format="png")
    plt.close(figure)


def _style(name: str, reads: Sequence[str], colours: Sequence[Any]) -> dict[str, Any]:
    """Colour: what is read; marker: how the encoder is trained; filled: the regression start."""
    colour = colours[reads.index(name.split(", ")[0])]
    mode = next(mode for mode in MARKERS if f", {mode}" in name)
    return {"marker": MARKERS[mode], "edgecolors": [colour], "c": [colour] if "Regression" in name else "none"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; 2 for a folder without finished runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `uniflow ablate --out` wrote")
    parser.add_argument("--encoder", type=Path, required=True, help="the encoder's weights")
    parser.add_argument("--photographs", type=Path, required=True, help="folder with train and test")
    parser.add_argument("--labelled", type=Path, help="folder with train/CLASS and test/CLASS; default: beside them")
    options = parser.parse_args(argv)
    labelled = options.labelled or options.photographs.parent / "labelled"
    found: dict[str, list[Any]] = defaultdict(list)
    for run in read_plan(ABLATION).runs(options.folder):
        if (run.folder / "test_results.json").is_file():
            found[run.variant].append(measure(run.folder, options.encoder, options.photographs, labelled))
    if not found:
        print(f"real_layers: error: no finished runs in {options.folder}", file=sys.stderr)
        return 2
    text = table(found)
    with replacing(options.folder / "real_layers.md") as new:
        new.write_text(text)
    plot(found, options.folder / "real_layers.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
