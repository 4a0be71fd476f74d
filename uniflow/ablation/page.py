"""A report as one HTML file that needs nothing outside itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from importlib.resources import files

import torch
from torch import Tensor

from uniflow.ablation.plots import Plot, to_svg
from uniflow.ablation.study import Study, caveats, glossary, protocol_warning
from uniflow.ablation.tables import Table, failures_table, layers_table, means_table, options_table, runs_table
from uniflow.pictures.drawing import row_png

Rows = Mapping[str, Tensor]
BARS = "Bars are one standard deviation over seeds, small dots single seeds; a loss has a line for each run."


def html_page(study: Study, plots: Sequence[Plot], plots_note: str, images: Mapping[str, Rows]) -> str:
    """The whole page.

    Args:
        study: the runs.
        plots: their plots.
        plots_note: shown instead of the plots if there are none.
        images: for each variant the rows of `tokenizer_rows`, uint8 (B, 3, H, W).
    """
    parts = [
        f"<h1>{html.escape(study.title)}</h1>",
        *(f"<p>{html.escape(' '.join(text.split()))}</p>" for text in study.description.split("\n\n") if text.strip()),
        _note(protocol_warning(study)),
        _note(failed_line(study)),
        _results(study),
        _plots(study, plots, plots_note),
        section("Layers", layers_table(study)),
        _pictures(images),
        section("Failed runs", failures_table(study)),
        _setup(study),
    ]
    return document(study.title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page that needs nothing outside itself.

    Args:
        title: of the page, plain text.
        parts: HTML of its parts, in order; empty ones are left out.
    """
    css = files("uniflow.ablation").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def failed_line(study: Study) -> str | None:
    """How many runs failed, in one line; None if none did."""
    failed = study.failed
    if not failed:
        return None
    names = ", ".join(f"{outcome.variant} seed {outcome.seed}" for outcome in failed)
    return f"{len(failed)} of {len(study.outcomes)} runs failed: {names}."


def _note(text: str | None) -> str:
    return f'<p class="note" role="note">{html.escape(text)}</p>' if text else ""


def section(title: str, *tables: Table | None) -> str:
    """A heading and the tables that are there; empty without any."""
    shown = [table.html() for table in tables if table is not None]
    return "\n".join([f"<h2>{title}</h2>", *shown]) if shown else ""


def _results(study: Study) -> str:
    if not study.finished:
        return "<h2>Results</h2>\n<p>No run has finished yet.</p>"
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in [*caveats(study), *glossary(study)])
    return section("Results", means_table(study)) + (f'\n<ul class="notes">{notes}</ul>' if notes else "")


def _plots(study: Study, plots: Sequence[Plot], note: str) -> str:
    if not plots:
        return f"<h2>Plots</h2>\n<p>{html.escape(note)}</p>" if note else ""
    figures = [
        f"<figure><figcaption>{html.escape(plot.title)}</figcaption>{to_svg(plot, number)}</figure>"
        for number, plot in enumerate(plots, start=1)
    ]
    return "\n".join(
        ["<h2>Plots</h2>", f"<p>{BARS}</p>" if study.has_seeds else "", '<div class="plots">', *figures, "</div>"]
    )


def _pictures(variants: Mapping[str, Rows]) -> str:
    """Reconstructions by number of steps, then features; each under its reference."""
    if not variants:
        return ""
    kinds = dict.fromkeys(key for rows in variants.values() for key in rows if key.startswith("reconstruction"))
    groups = [(kind.capitalize(), "original", kind) for kind in kinds]
    groups.append(("Features, last layer in the teacher's principal colours", "teacher", "student"))
    parts = ["<h2>Pictures</h2>", '<div class="pictures">']
    for title, reference, kind in groups:
        parts.append(f"<h3>{html.escape(title)}</h3>")
        shown: Tensor | None = None
        for name, rows in variants.items():
            if kind not in rows:
                continue
            if shown is None or not torch.equal(shown, rows[reference]):
                shown = rows[reference]
                parts.append(picture(reference, shown))
            parts.append(picture(name, rows[kind]))
    return "\n".join([*parts, "</div>"])


def picture(name: str, images: Tensor) -> str:
    """A figure with images (B, 3, H, W), uint8, in a row, and `name` as its caption."""
    data = base64.b64encode(row_png(images)).decode()
    label = html.escape(name)
    alt = f"{label}: {len(images)} images of the test split in a row"
    return f'<figure><figcaption>{label}</figcaption><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'


def _setup(study: Study) -> str:
    facts = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in study.facts)
    return "\n".join(
        [section("What was run", options_table(study), runs_table(study)), f"<dl>{facts}</dl>" if facts else ""]
    )
