"""Run the benchmarks of the CPU and write docs/benchmarks.md: some ten minutes on one core.

Each script runs in a process of its own with one thread, and prints a line of JSON for each figure. What stands between
the markers of the notes is kept. The exit code is 1 if a script failed, which the page then says.

    make benchmark
    python benchmarks/run.py [--only step overhead] [--out docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
}
NOTES = ("<!-- notes: written by hand, kept by benchmarks/run.py -->", "<!-- end of the notes -->")
HEAD = """\
# Benchmarks

Ratios against a named baseline of the same run, on a CPU with one thread. A time is processor time, candidate and
baseline run in turn, and a ratio is the median of the rounds' ratios; the brackets are the smallest and the largest of
them. Of times and memory a ratio below 1 is less, of images/s one above 1 is more. A dash: no target was set.

Written by `make benchmark` (`python benchmarks/run.py`). Each table says when it was measured, and on what machine.
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
    parser.add_argument("--only", nargs="+", choices=list(TOPICS), default=list(TOPICS), help="these scripts only")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one script")
    options = parser.parse_args(argv)
    results = [run(script, ROOT / "benchmarks" / f"{script}.py", options.timeout) for script in options.only]
    old = options.out.read_text() if options.out.is_file() else ""
    options.out.write_text(page(results, old))
    return int(any(result.failure for result in results))


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
    """The page with the results; the notes, and the sections of scripts that did not run, come from the old page."""
    done = {result.script: section(result) for result in results}
    sections = [done.get(script) or _between(old, *_marks(script)) for script in TOPICS]
    notes = _between(old, *NOTES) or f"{NOTES[0]}\n{NOTES[1]}\n"
    return "\n".join([HEAD, *(text for text in sections if text), "## Notes\n", notes])


def section(result: Result) -> str:
    """The table of one script, between its marks."""
    begin, end = _marks(result.script)
    text = [begin, f"## {TOPICS[result.script]}", ""]
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


def _marks(script: str) -> tuple[str, str]:
    return f"<!-- {script} -->", f"<!-- end of {script} -->"


def _between(text: str, begin: str, end: str) -> str:
    """What stands from `begin` to `end`, both included; empty if they are not there."""
    start = text.find(begin)
    stop = text.find(end, start)
    return "" if start < 0 or stop < 0 else text[start : stop + len(end)] + "\n"


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    sys.exit(main())
