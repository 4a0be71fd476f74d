"""Runs side by side: a table of their test results, and a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from uniflow.curves import plot_curves

COLUMNS = {
    "probe_teacher": ("probe of the teacher", "{:.1%}"),
    "probe_student": ("probe of the student", "{:.1%}"),
    "cosine": ("cosine, mean of layers", "{:.4f}"),
    "psnr": ("PSNR, 1 step", "{:.2f} dB"),
    "ssim": ("SSIM, 1 step", "{:.4f}"),
    "psnr_steps4": ("PSNR, 4 steps", "{:.2f} dB"),
    "ssim_steps4": ("SSIM, 4 steps", "{:.4f}"),
    "psnr_patch_mean": ("PSNR of patch means", "{:.2f} dB"),
}


def report(runs: list[Path], out: Path = Path("report")) -> None:
    """Compare the test results of runs: report.md with the tables, comparison.png and, with matplotlib, curves.png.

    Args:
        runs: folders of runs that `uniflow test` has been through.
        out: folder for the report.

    Raises:
        FileNotFoundError: if a run has no test results.
    """
    results = {run.name: _results(run) for run in runs}
    out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(
        ["# Comparison of runs", results_table(results), "Cosine to the teacher, by layer:", layer_table(results)]
    )
    (out / "report.md").write_text(text + "\n")
    print(text)
    rows = {run.name: load_file(run / "images" / "test.safetensors") for run in runs if _has_images(run)}
    if rows:
        comparison_picture(rows).save(out / "comparison.png")
        print(f"\npicture: {out / 'comparison.png'}")
    if plot_curves({run.name: run for run in runs}, out / "curves.png"):
        print(f"curves:  {out / 'curves.png'}")
    print(f"report:  {out / 'report.md'}")


def results_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table: a line for each run, a column for each known metric that any run has."""
    columns = {key: text for key, text in COLUMNS.items() if any(f"test/{key}" in r for r in results.values())}
    rows = [["run", *(title for title, _ in columns.values())]]
    for name, values in results.items():
        cells = [
            fmt.format(values[f"test/{key}"]) if f"test/{key}" in values else "" for key, (_, fmt) in columns.items()
        ]
        rows.append([name, *cells])
    return _markdown(rows)


def layer_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table: a line for each run, a column for each layer's cosine to the teacher."""
    pattern = re.compile(r"test_layers/cosine_(\d+)")
    layers = sorted({m[1] for values in results.values() for key in values if (m := pattern.fullmatch(key))})
    rows = [["run", *(str(int(layer)) for layer in layers)]]
    for name, values in results.items():
        found = [values.get(f"test_layers/cosine_{layer}") for layer in layers]
        rows.append([name, *("" if value is None else f"{value:.4f}" for value in found)])
    return _markdown(rows)


def comparison_picture(runs: dict[str, dict[str, Tensor]], scale: int = 2) -> Image.Image:
    """A labelled picture of several runs on the same images.

    Args:
        runs: for each run the rows of `tokenizer_rows`, uint8 (B, 3, H, W).
        scale: whole factor by which the images are enlarged.

    Returns:
        Originals and the teacher's features once, then each run's reconstructions and student's features.
    """
    first = next(iter(runs.values()))
    labelled = [("original", first["original"]), ("teacher's features", first["teacher"])]
    for name, rows in runs.items():
        labelled += [(f"{name}: {key}", rows[key]) for key in sorted(rows) if key.startswith("reconstruction")]
        labelled.append((f"{name}: student's features", rows["student"]))
    count, height = first["original"].shape[0], first["original"].shape[2] * scale
    images = torch.cat([row for _, row in labelled])
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    grid = to_pil_image(make_grid(images, nrow=count, padding=2, pad_value=255))
    font = ImageFont.load_default(15)
    margin = 16 + max(int(font.getlength(label)) for label, _ in labelled)
    picture = Image.new("RGB", (grid.width + margin, grid.height), "white")
    picture.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(picture)
    for number, (label, _) in enumerate(labelled):
        draw.text((8, 2 + number * (height + 2) + height // 2), label, fill="black", font=font, anchor="lm")
    return picture


def _results(run: Path) -> dict[str, float]:
    path = run / "test_results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no test_results.json: run `uniflow test -c {run}/config.yaml --ckpt_path {run}/last.ckpt` first"
        )
    return json.loads(path.read_text())


def _has_images(run: Path) -> bool:
    return (run / "images" / "test.safetensors").is_file()


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
