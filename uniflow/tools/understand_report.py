"""What the runs of `uniflow understand` have measured, as a table and as a page with pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from uniflow.ablation.collect import read_results
from uniflow.ablation.launch import standing
from uniflow.ablation.page import document, picture, section
from uniflow.ablation.plan import Run
from uniflow.ablation.state import FAILED, FINISHED, surroundings
from uniflow.ablation.tables import Table

NOT_MEASURED = "-"
EXPLANATION = (
    "All columns are made by the same recipe, which sees nothing of an image but the features of one source: of the "
    "original encoder (teacher), of the tokenizer's encoder (student), of its latents, or the same features for every "
    "image (baseline: what can be had without looking). Kept is what is left of the teacher's lead over that baseline."
)


@dataclass
class Problem:
    """One task and what each source has reached.

    Args:
        name: of the task.
        metric: that judges it, as test_results.json names it.
        better: which way is better, "max" or "min".
        values: source -> its number; without those that have not finished.
        errors: source -> why its run failed.
        pictures: source -> rows of images, uint8 (B, 3, H, W), by title.
    """

    name: str
    metric: str
    better: str
    values: dict[str, float]
    errors: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def kept(self, source: str) -> float | None:
        """What is left of the teacher's lead over the baseline, 1 is all; None if there is no such lead."""
        needed = [self.values.get(name, math.nan) for name in ("teacher", "baseline", source)]
        teacher, baseline, value = needed
        lead = (teacher - baseline) * (1 if self.better == "max" else -1)
        if not all(map(math.isfinite, needed)) or lead <= 0:
            return None
        return (value - baseline) / (teacher - baseline)

    def as_json(self) -> dict[str, Any]:
        finite = {name: value if math.isfinite(value) else None for name, value in self.values.items()}
        return {
            "metric": self.metric,
            "better": self.better,
            **finite,
            **({"errors": self.errors} if self.errors else {}),
        }


def read_problem(name: str, monitor: str, better: str, runs: Sequence[Run]) -> Problem:
    """What the runs of a task have left; `monitor` is the metric in validation, such as "val/accuracy".

    Raises:
        ValueError: if a finished run has no such number in its results.
    """
    metric = f"test/{monitor.removeprefix('val/')}"
    problem = Problem(name, metric, better, {})
    for run in runs:
        source, state = run.folder.name, standing(run)
        if state.state == FAILED:
            problem.errors[source] = state.error
        if state.state != FINISHED:
            continue
        results = read_results(run.folder)
        if metric not in results:
            raise ValueError(f"{run.folder}: the results have no {metric}, by which its task is judged")
        problem.values[source] = float(results[metric])
        file = run.folder / "images" / "test.safetensors"
        if file.is_file():
            problem.pictures[source] = load_file(file)
    return problem


def results_table(problems: Sequence[Problem]) -> Table:
    """A row for each task, a column for each source, and what student and latents keep of the teacher's lead."""
    sources = list(dict.fromkeys(source for p in problems for source in (*p.values, *p.errors)))
    kept = [source for source in sources if source not in ("teacher", "baseline")]
    header = ["task", "metric", *sources, *(f"kept by {source}" for source in kept)]
    rows = []
    for p in problems:
        arrow = "higher is better" if p.better == "max" else "lower is better"
        numbers = [
            f"{p.values[s]:.4f}" if s in p.values else "failed" if s in p.errors else NOT_MEASURED for s in sources
        ]
        shares = [NOT_MEASURED if (share := p.kept(s)) is None else f"{100 * share:.0f}%" for s in kept]
        rows.append([p.name, f"{p.metric.removeprefix('test/')} ({arrow})", *numbers, *shares])
    return Table("Each task, by the features that its head reads.", header, rows)


def print_table(problems: Sequence[Problem]) -> None:
    """The table, and why runs failed, to standard output."""
    print("\n" + results_table(problems).text())
    for p in problems:
        for source, error in p.errors.items():
            print(f"{p.name}, {source}: failed: {error}")


def write_page(problems: Sequence[Problem], command: str) -> str:
    """The page: table, pictures of each task, how it was made."""
    facts = {"Command": command, **{name.capitalize(): text for name, text in surroundings().items()}}
    listed = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in facts.items())
    parts = [
        "<h1>What the features are good for</h1>",
        f"<p>{html.escape(EXPLANATION)}</p>",
        section("Results", results_table(problems)),
        *(_pictures(problem) for problem in problems),
        f"<h2>How it was made</h2><dl>{listed}</dl>",
    ]
    return document("What the features are good for", parts)


def _pictures(problem: Problem) -> str:
    """The rows that all sources share once, then each source's own."""
    if not problem.pictures:
        return ""
    shared = _shared_rows(list(problem.pictures.values()))
    figures = [picture(title, images) for title, images in shared.items()]
    for source, rows in problem.pictures.items():
        figures += [picture(f"{source}: {title}", images) for title, images in rows.items() if title not in shared]
    return "\n".join(
        [f"<h2>{html.escape(problem.name.capitalize())}</h2>", '<div class="pictures">', *figures, "</div>"]
    )


def _shared_rows(pictures: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first, *others = pictures
    return {
        title: images
        for title, images in first.items()
        if all(title in rows and torch.equal(rows[title], images) for rows in others)
    }
