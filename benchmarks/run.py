"""Run the benchmarks of the CPU and write docs/benchmarks.md: fifteen minutes, on a CPU without bf16 thirty.

Each script runs in a process of its own with one thread, and prints a line of JSON for each figure. Each kind of
processor has a table of its own: those of other kinds are kept, as are the notes between their markers. The exit code
is 1 if a script failed, which the page then says.

    make benchmark
    python benchmarks/run.py [--only step overhead] [--out docs/benchmarks.md]
    make gpu      # among others: python benchmarks/run.py --only gpu --timeout 3600
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# Script -> its topic on the page.
TOPICS = {
    "reconstruction": "Reconstruction at the released size",
    "inference": "Encoding and decoding",
    "tiling": "Large pictures by tiles",
    "step": "Training step",
    "overhead": "Logging, EMA and the other callbacks",
    "data": "Reading data",
    "lora": "Low-rank adapters",
    "plan": "Memory planner",
    "gpu": "One GPU",
}
GPU, NONE = "gpu", "none"  # the topic that needs one, only run where it is asked for; the kind where there is none
NOTES = ("<!-- notes: written by hand, kept by benchmarks/run.py -->", "<!-- end of the notes -->")
HEAD = """\
# Benchmarks

Ratios against a named baseline of the same run, on a CPU with one thread; what is measured on a GPU has a section of
its own, by the clock. A time is processor time, candidate and baseline run in turn, and a ratio is the median of the
rounds' ratios; the brackets are the smallest and the largest of them. Of times and memory a ratio below 1 is less, of
images/s one above 1 is more. A dash: no target was set.

Written by `make benchmark` (`python benchmarks/run.py`), the GPU's section by `make gpu`. Each kind of processor has a
table of its own, which says when it was measured.
"""


@dataclass
class Result:
    """What one script printed, and how it ended."""

    script: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scripts and write the page; 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(TOPICS), default=[t for t in TOPICS if t != GPU], help="these only"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one script")
    options = parser.parse_args(argv)
    results = [run(script, ROOT / "benchmarks" / f"{script}.py", options.timeout) for script in options.only]
    old = options.out.read_text() if options.out.is_file() else ""
    options.out.write_text(page(results, old))
    return int(any(result.failure for result in results))


def processor(script: str) -> str:
    """The kind of processor that a script measures here: the CPU's vector instructions, or the name of the GPU."""
    if script == GPU:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else NONE
    return torch.backends.cpu.get_cpu_capability()


def run(script: str, path: Path, timeout: float) -> Result:
    """Run one script; its lines of JSON are printed as well."""
    result, start = Result(script), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
        output, errors, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as expired:
        output, errors, code = _text(expired.stdout), f"not done after {timeout:.0f} s", 1
    result.lines = [line for line in map(parse, output.splitlines()) if line is not None]
    result.seconds = time.monotonic() - start
    if code or not result.lines:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        result.failure = last[:300] if code else "no line of JSON was printed"
    for line in result.lines:
        print(json.dumps(line), flush=True)
    if result.failure:
        print(f"{path.name} failed: {result.failure}", file=sys.stderr, flush=True)
    return result


def parse(line: str) -> dict[str, Any] | None:
    """A measurement, or None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and {"name", "value", "ratio"} <= found.keys() else None


def page(results: Sequence[Result], old: str) -> str:
    """The page with the results; the notes, and the tables of other scripts and processors, come from the old page."""
    done = {result.script: result for result in results}
    topics = [topic(script, done.get(script), old) for script in TOPICS]
    notes = _between(old, *NOTES) or f"{NOTES[0]}\n{NOTES[1]}\n"
    return "\n".join([HEAD, *(text for text in topics if text), "## Notes\n", notes])


def topic(script: str, result: Result | None, old: str) -> str:
    """The section of one script: a table for each kind of processor, between its marks; empty if there is none."""
    kinds = re.findall(rf"^<!-- {script}: (.+) -->$", old, re.MULTILINE)
    tables = {kind: _between(old, *_marks(script, kind)) for kind in kinds}
    if result is not None:
        kind = processor(script)
        tables = {other: text for other, text in tables.items() if other != NONE} | {kind: table(result, kind)}
    return "\n".join([f"## {TOPICS[script]}\n", *(tables[kind] for kind in sorted(tables))]) if tables else ""


def table(result: Result, kind: str) -> str:
    """What one script has printed."""
    begin, end = _marks(result.script, kind)
    text = [begin, f"**{kind}**", ""]
    if result.failure:
        text += [f"**Failed**: {result.failure}", ""]
    if result.lines:
        text += ["| what | measured | baseline | ratio | target | |", "| --- | ---: | --- | ---: | ---: | --- |"]
        text += [_cells(line) for line in result.lines]
        commands = dict.fromkeys(str(line.get("command")) for line in result.lines)
        dates = dict.fromkeys(str(line.get("date")) for line in result.lines)
        where = f"{result.lines[0].get('machine')}; torch {result.lines[0].get('torch')}"
        text += ["", f"`{'`, `'.join(commands)}`, {', '.join(dates)}, {result.seconds:.0f} s. {where}."]
    return "\n".join([*text, end, ""])


def _cells(line: Mapping[str, Any]) -> str:
    spread, target = line.get("spread"), line.get("target")
    ratio = "–" if line["ratio"] is None else f"{line['ratio']:.3g}"
    if spread:
        ratio += f" [{spread[0]:.3g}, {spread[1]:.3g}]"
    verdict = {True: "met", False: "**missed**"}.get(line.get("met"), "")  # type: ignore[arg-type]
    measured = f"{line['value']:.4g} {line.get('unit') or ''}".strip()
    limit = "–" if target is None else f"{target:g}"
    cells = [line["name"], measured, line.get("baseline") or "–", ratio, limit, verdict]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _marks(script: str, kind: str) -> tuple[str, str]:
    return f"<!-- {script}: {kind} -->", f"<!-- end of {script}: {kind} -->"


def _between(text: str, begin: str, end: str) -> str:
    """What stands from `begin` to `end`, both included; empty if they are not there."""
    start = text.find(begin)
    stop = text.find(end, start)
    return "" if start < 0 or stop < 0 else text[start : stop + len(end)] + "\n"


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    sys.exit(main())
