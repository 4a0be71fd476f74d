"""The tables of a report, in one form for Markdown and HTML; and results.csv."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uniflow.ablation.metrics import duration
from uniflow.ablation.study import Study, best

LAYER = re.compile(r"test_layers/cosine_(\d+)")


class Best(str):
    """A cell with the best value of its column."""


@dataclass
class Table:
    """Rows of text; the first cell of each row names it.

    Args:
        caption: what it shows.
        header: titles of the columns.
        rows: cells, `Best` where a value is the best of its column.
        numbers: whether the cells after the first are numbers.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True

    def markdown(self) -> str:
        lines = [_markdown_row(self.header), "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *map(_markdown_row, self.rows)])

    def text(self) -> str:
        """For a terminal: columns in line, turned on its side where that is narrower; `Best` with an asterisk."""
        grid = [[f"{c} *" if isinstance(c, Best) else c for c in row] for row in (self.header, *self.rows)]
        grid = min(grid, [list(column) for column in zip(*grid, strict=True)], key=_width)
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        return "\n".join(_text_row(row, widths) for row in grid)

    def html(self) -> str:
        """The table in a container of its own that scrolls, so that the page never does sideways."""
        kind = ' class="numbers"' if self.numbers else ""
        head = "".join(f'<th scope="col"><span>{html.escape(cell)}</span></th>' for cell in self.header)
        body = "\n".join(f"<tr>{_html_row(row)}</tr>" for row in self.rows)
        caption = html.escape(self.caption)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n<table{kind}>\n'
            f"<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )


def means_table(study: Study) -> Table:
    """A row for each variant with finished runs: mean ± spread of each metric, the best of each column marked."""
    metrics, variants, seeded = study.shown_metrics(), study.variants, study.has_seeds
    columns = {metric: study.summaries(metric.key) for metric in metrics}
    rows = []
    for name, group in variants.items():
        row: list[str] = [name, *([str(len(group))] if seeded else [])]
        for metric, summaries in columns.items():
            summary = summaries.get(name)
            text = metric.show(summary.mean, summary.spread) if summary is not None else ""
            row.append(Best(text) if name in best(metric, summaries) else text)
        rows.append(row)
    what = "Mean ± sample standard deviation over seeds" if seeded else "Results, one run each"
    caption = what + ("; bold: the best of each column." if len(rows) > 1 else ".")
    return Table(caption, ["run", *(["seeds"] if seeded else []), *(metric.title for metric in metrics)], rows)


def layers_table(study: Study) -> Table | None:
    """A row for each variant: the mean cosine to the teacher of each layer; None if no run has it."""
    layers = sorted({m[1] for o in study.finished for key in o.results if (m := LAYER.fullmatch(key))}, key=int)
    if not layers:
        return None
    columns = [study.summaries(f"test_layers/cosine_{layer}") for layer in layers]
    rows = [[name, *(f"{c[name].mean:.4f}" if name in c else "" for c in columns)] for name in study.variants]
    return Table("Cosine to the teacher, by layer.", ["run", *(str(int(layer)) for layer in layers)], rows)


def options_table(study: Study) -> Table | None:
    """What makes each variant; None if that is not known."""
    options = study.options
    names = list(dict.fromkeys(name for changes in options.values() for name in changes))
    if not names:
        return None
    rows = [[variant, *(changes.get(name, "") for name in names)] for variant, changes in options.items()]
    return Table(
        "What makes each variant; empty where the recipe's own value stays.", ["variant", *names], rows, numbers=False
    )


def runs_table(study: Study) -> Table:
    """A row for each run, finished or not; without its numbers where the table of means is one of single runs."""
    metrics = study.shown_metrics() if study.has_seeds else []
    rows = [
        [
            outcome.variant,
            "" if outcome.seed is None else str(outcome.seed),
            outcome.state,
            "" if outcome.steps is None else str(outcome.steps),
            duration(outcome.seconds),
            *(metric.show(outcome.results[metric.key]) if metric.key in outcome.results else "" for metric in metrics),
        ]
        for outcome in study.outcomes
    ]
    return Table("Every run.", ["variant", "seed", "state", "steps", "time", *(m.title for m in metrics)], rows)


def failures_table(study: Study) -> Table | None:
    """The runs that failed, and why; None if none did."""
    rows = [[f"{o.variant}, seed {o.seed}", o.error, f"{o.folder}.log.txt"] for o in study.failed]
    return Table("Runs that failed.", ["run", "last line", "log"], rows, numbers=False) if rows else None


def write_csv(study: Study, path: Path) -> None:
    """One row for each run: variant, seed, options that vary, state, steps, wall seconds, protocol, every metric."""
    options = list(dict.fromkeys(name for changes in study.options.values() for name in changes))
    metrics = sorted({key for outcome in study.outcomes for key in outcome.results})
    protocol = ["protocol/fingerprint"] if any(outcome.protocol for outcome in study.outcomes) else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *options, "state", "steps", "seconds", *protocol, *metrics])
        for outcome in study.outcomes:
            seconds = None if outcome.seconds is None else round(outcome.seconds, 1)
            settings = [outcome.options.get(name) for name in options]
            numbers = [outcome.results.get(key) for key in metrics]
            progress = [outcome.state, outcome.steps, seconds, *([outcome.protocol] if protocol else [])]
            writer.writerow([outcome.variant, outcome.seed, *settings, *progress, *numbers])


def _width(grid: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*grid, strict=True))


def _text_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (f"{c:{'>' if number else '<'}{w}}" for number, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join([first, *rest]).rstrip()


def _markdown_row(cells: Sequence[str]) -> str:
    shown = [cell.replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(f"**{s}**" if isinstance(c, Best) else s for s, c in zip(shown, cells, strict=True)) + " |"


def _html_row(cells: Sequence[str]) -> str:
    first, *rest = cells
    shown = [f"<strong>{html.escape(c)}</strong>" if isinstance(c, Best) else html.escape(c) for c in rest]
    return f'<th scope="row"><span>{html.escape(first)}</span></th>' + "".join(f"<td>{cell}</td>" for cell in shown)
