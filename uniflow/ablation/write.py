"""Writes a report: results.csv, report.md, report.html, comparison.png; with matplotlib, curves.png and pareto.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from uniflow.ablation.metrics import KNOWN, RECONSTRUCTION, UNDERSTANDING
from uniflow.ablation.page import failed_line, html_page
from uniflow.ablation.plots import Plot, plots, to_png
from uniflow.ablation.study import Study, caveats, glossary, protocol_warning
from uniflow.ablation.tables import failures_table, layers_table, means_table, options_table, runs_table, write_csv
from uniflow.pictures.curves import plot_curves, read_curves
from uniflow.pictures.drawing import comparison_picture


def write_report(study: Study, out: Path, first_large: bool = False) -> None:
    """Write all files of a report into `out`, and the table of means to standard output.

    Args:
        study: the runs.
        out: folder for the files.
        first_large: show the first variant's reconstructions larger than the others' in comparison.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_csv(study, out / "results.csv")
    pictures = _pictures(study)
    if pictures:
        comparison_picture(_of_one_shape(pictures), _captions(study), first_large).save(out / "comparison.png")
    drawn, note = _plots(study)
    pareto = next((plot for plot in drawn if plot.title == "Understanding against reconstruction"), None)
    if pareto is not None:
        to_png(pareto, out / "pareto.png")
    curves = plot_curves({name: group[0].folder for name, group in study.variants.items()}, out / "curves.png")
    (out / "report.html").write_text(html_page(study, drawn, note, pictures), encoding="utf-8")
    images = {"comparison.png": bool(pictures), "pareto.png": pareto is not None, "curves.png": curves}
    shown = [name for name, exists in images.items() if exists]
    (out / "report.md").write_text(markdown(study, shown), encoding="utf-8")
    print(terminal(study) + (f"\n\n{note}" if note else ""))
    print(f"\nTables, images and plots: {', '.join(str(out / name) for name in ('report.html', *shown))}")
    print(f"The same as text: {out / 'report.md'}, {out / 'results.csv'}")


def terminal(study: Study) -> str:
    """The results as a terminal shows them: the table of means, what it does not show, and what its columns mean."""
    parts = [protocol_warning(study), failed_line(study)]
    if study.finished:
        table = means_table(study).text()
        parts += [table + ("\n* the best of the runs" if " *" in table else "")]
        parts += ["\n".join(caveats(study)), "\n".join(glossary(study))]
    else:
        parts.append("No run has finished yet.")
    return "\n" + "\n\n".join(part for part in parts if part)


def markdown(study: Study, images: list[str]) -> str:
    """The report as Markdown.

    Args:
        study: the runs.
        images: names of image files beside it.
    """
    parts = [f"# {study.title}", study.description.strip(), protocol_warning(study), failed_line(study)]
    if study.finished:
        parts += [means_table(study).markdown(), "\n".join(f"- {line}" for line in [*caveats(study), *glossary(study)])]
    else:
        parts.append("No run has finished yet.")
    for heading, table in (
        ("Cosine to the teacher, by layer:", layers_table(study)),
        ("Runs that failed:", failures_table(study)),
        ("What makes each variant:", options_table(study)),
        ("Every run:", runs_table(study)),
    ):
        if table is not None:
            parts += [heading, table.markdown()]
    parts.append("\n".join(f"- {word}: {text}" for word, text in study.facts))
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in images]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plots(study: Study) -> tuple[list[Plot], str]:
    """The plots, or why there are none."""
    curves = {name: [read_curves(run.folder) for run in group] for name, group in study.variants.items()}
    try:
        return plots(study, curves), ""
    except ImportError as error:
        return [], str(error)


def _pictures(study: Study) -> dict[str, dict[str, Tensor]]:
    """The test images of each variant's first run that has any."""
    images = {}
    for name, group in study.variants.items():
        files = [run.folder / "images" / "test.safetensors" for run in group]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            images[name] = load_file(file)
    return images


def _captions(study: Study) -> dict[str, str]:
    """Captions of each variant and of "teacher": how well it reconstructs, how much it understands."""
    captions: dict[str, list[str]] = {}
    for key, word in ((RECONSTRUCTION, "PSNR"), (UNDERSTANDING, "probe")):
        for name, summary in study.summaries(key).items():
            captions.setdefault(name, []).append(f"{word} {KNOWN[key].show(summary.mean)}")
    teacher = study.summaries("test/probe_teacher")
    if teacher:
        captions["teacher"] = [f"probe {KNOWN['test/probe_teacher'].show(next(iter(teacher.values())).mean)}"]
    return {name: "\n".join(lines) for name, lines in captions.items()}


def _of_one_shape(pictures: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    """Those whose images have the shape of the first's; the HTML page also shows the others."""
    shape = next(iter(pictures.values()))["original"].shape
    return {name: rows for name, rows in pictures.items() if rows["original"].shape == shape}
