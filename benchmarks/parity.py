"""Parity with the public UniFlow release: how far our intermediates, losses and gradients lie from its own.

Computes them in float32 and float64 for the inputs in tests/fixtures, and writes a table of the largest absolute
differences; exit code 1 if one is above its tolerance.

    make parity
    python benchmarks/parity.py [--out docs/parity.md]
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch import Tensor

import uniflow

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # where the reference's numbers are read

import official_reference as reference

# Columns: type, and whether the reference machine's time frequencies are used.
COLUMNS = [(dtype, recovered) for recovered in (True, False) for dtype in (torch.float32, torch.float64)]
# Values of many parameters or settings share a row: start of their names -> the row's name.
GROUPS = {
    "grad_norm ": "gradient norm of each parameter of the flow head",
    "dist independent": "distillation: distances, weights, loss, gradient norm (independent features)",
    "dist correlated": "distillation: distances, weights, loss, gradient norm (correlated features)",
}
NAMES = {
    "v_pred": "velocity at the training times",
    "flow_loss": "flow loss",
    "grad_z": "gradient of the flow loss for the condition",
    "grad_norm_z": "gradient norm of the condition",
}
TEXT = """\
# Parity with the public release

The largest absolute differences between what this package computes and what the paper's public release computed, for a
checkpoint in the release's format with random weights ([tests/fixtures](../tests/fixtures/official_tiny)), read by
`Tokenizer.from_official`. The values are of the order of 1 to 10. A dash: the release's number was not recorded.

Written by `make parity`, which runs `python benchmarks/parity.py --out docs/parity.md`, on {date}:
{machine}, one thread; {versions}.
`tests/official` measures all of it again and holds this page to its tolerances.

## Intermediates

{intermediates}

`hidden_states.0` are the embedded patches; `encoder84` is an image of 84 pixels, so another grid; `stepsS.tI` and
`stepsS.vI` are the time that the flow head sees in step I of S and the velocity that it gives; `pow_0.25` is the power
schedule of the steps, `cfg1.5` classifier-free guidance.

## Losses

{losses}

## The two pairs of columns

The flow head embeds its time with 128 frequencies, 10000^(-k/128), in float32. The release takes them from float32
`exp`, which rounds differently from machine to machine; ours are rounded correctly, so they are the same everywhere.
Of the fixtures' frequencies those with k = {changed} lie one unit in the last place away from ours; they are recovered
from a recorded time embedding. *Same frequencies* puts them in the place of ours, and what is left is the rounding of
sums. *Own frequencies* is the package as it is: at t = 0, where one-step decoding lives, nothing changes; at later
times the angles 1000 t f_k differ a little.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page, or write it to `--out`; 1 if a difference is above its tolerance, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="file to write; by default the page is printed")
    out: Path | None = parser.parse_args(argv).out
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # The fixture's network is too narrow to be trained.
        warnings.filterwarnings("ignore", "a velocity-predicting patch MLP")
        intermediates = measure(reference.intermediates, reference.references)
        losses = measure(reference.losses, reference.loss_references)
    page = render(intermediates, losses)
    if out is None:
        print(page, end="")
    else:
        out.write_text(page)
    limits = [reference.tolerance(dtype, reference_frequencies=recovered) for dtype, recovered in COLUMNS]
    values = [*intermediates.values(), *losses.values()]
    return int(any(v is not None and v > limit for row in values for v, limit in zip(row, limits, strict=True)))


def measure(
    ours: Callable[[torch.dtype], dict[str, Tensor]], theirs: Callable[[torch.dtype], dict[str, Tensor]]
) -> dict[str, list[float | None]]:
    """For each value the largest absolute difference in each of `COLUMNS`; None where the release has no number."""
    rows: dict[str, list[float | None]] = {}
    for column, (dtype, recovered) in enumerate(COLUMNS):
        with reference.reference_time_embedding() if recovered else nullcontext():
            found = ours(dtype)
        for name, expected in theirs(dtype).items():
            difference = float((found[name].double() - expected.double()).abs().max())
            if not math.isfinite(difference):
                raise ArithmeticError(f"{name} is not finite in {dtype}")
            row = rows.setdefault(_row_name(name), [None] * len(COLUMNS))
            row[column] = max(difference, row[column] or 0.0)
    return rows


def render(intermediates: dict[str, list[float | None]], losses: dict[str, list[float | None]]) -> str:
    """The page."""
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "uniflow": uniflow.__version__,
    }
    return TEXT.format(
        date=datetime.date.today().isoformat(),
        machine=_machine(),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        intermediates=_table(intermediates),
        losses=_table(losses),
        changed=", ".join(map(str, reference.changed_frequencies())),
    )


def _table(rows: dict[str, list[float | None]]) -> str:
    names = [
        f"{str(dtype).removeprefix('torch.')}, {'same' if recovered else 'own'} frequencies"
        for dtype, recovered in COLUMNS
    ]
    limits = [f"{reference.tolerance(dtype, reference_frequencies=recovered):.0e}" for dtype, recovered in COLUMNS]
    lines = [["value", *names], ["---", *["---:"] * len(COLUMNS)], ["tolerance", *limits]]
    lines += [[f"`{name}`" if " " not in name else name, *map(_number, row)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def _row_name(name: str) -> str:
    return next((row for start, row in GROUPS.items() if name.startswith(start)), NAMES.get(name, name))


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model or 'CPU'} ({platform.machine()}, {platform.system()})"


if __name__ == "__main__":
    sys.exit(main())
