"""The plots of a report: matplotlib figures, and these as SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniflow.ablation.metrics import RECONSTRUCTION, UNDERSTANDING, Metric
from uniflow.ablation.study import Study
from uniflow.ablation.tables import LAYER
from uniflow.pictures.curves import Curve

# Colours in the figures -> CSS variables in the page, which has others for a dark background.
INK, RULE = "#24292e", "#d5d9de"
SERIES = ("#2563a8", "#c2410c", "#0f7b5f", "#8b3fa0", "#a16207", "#0e7490", "#be185d", "#52525b")
VARIABLES = {INK: "var(--ink)", RULE: "var(--rule)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)
}
MARKERS, LINES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "uniflow",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
SIZE = (3.75, 3.1)  # inches: at its own size, a plot is as wide as a phone
MOST_POINTS = 200  # of a curve


@dataclass
class Plot:
    """A figure, and the text that describes it to those who cannot see it."""

    figure: Any
    title: str
    alt: str


def plots(study: Study, curves: Mapping[str, Sequence[Mapping[str, Curve]]]) -> list[Plot]:
    """All plots that the runs have numbers for.

    Args:
        study: the runs.
        curves: what the runs of each variant have logged, as `read_curves` gives it.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with _style():
        metric_plots = [
            pareto_plot(study),
            *(metric_plot(study, metric) for metric in study.shown_metrics() if metric.better != "none"),
        ]
        return [plot for plot in [*metric_plots, layers_plot(study), *loss_plots(study, curves)] if plot is not None]


def pareto_plot(study: Study) -> Plot | None:
    """Understanding against reconstruction, with bars of one standard deviation; a line joins what nothing beats."""
    metrics = {metric.key: metric for metric in study.shown_metrics()}
    if UNDERSTANDING not in metrics or RECONSTRUCTION not in metrics:
        return None
    x_metric, y_metric = metrics[UNDERSTANDING], metrics[RECONSTRUCTION]
    xs, ys = study.summaries(UNDERSTANDING), study.summaries(RECONSTRUCTION)
    both = [name for name in study.variants if name in xs and name in ys]
    figure, axis = _figure()
    for name in both:
        x, y = xs[name], ys[name]
        axis.errorbar(
            x.mean * x_metric.scale,
            y.mean * y_metric.scale,
            xerr=None if x.spread is None else x.spread * x_metric.scale,
            yerr=None if y.spread is None else y.spread * y_metric.scale,
            capsize=2,
            label=name,
            **_point(study, name),
        )
    front = pareto_front({name: (xs[name].mean, ys[name].mean) for name in both})
    points = [(xs[name].mean * x_metric.scale, ys[name].mean * y_metric.scale) for name in front]
    axis.plot(*zip(*points, strict=True), color=INK, linewidth=0.8, linestyle=":", zorder=0)
    axis.set_xlabel(_with_unit(x_metric))
    axis.set_ylabel(_with_unit(y_metric))
    _legend(study, figure, axis)
    values = "; ".join(f"{n}: {x_metric.show(xs[n].mean)}, {y_metric.show(ys[n].mean)}" for n in both)
    alt = f"{x_metric.title} against {y_metric.title}. {values}. Nothing beats: {', '.join(front)}."
    return Plot(figure, "Understanding against reconstruction", alt)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points that no other beats in both coordinates (higher is better), by the first coordinate."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def metric_plot(study: Study, metric: Metric) -> Plot:
    """Each variant's mean with a bar of one standard deviation; the seeds as small dots."""
    summaries = study.summaries(metric.key)
    figure, axis = _figure(height=max(1.4, 0.75 + 0.32 * len(summaries)))
    for row, (name, summary) in enumerate(summaries.items()):
        spread = None if summary.spread is None else summary.spread * metric.scale
        axis.errorbar(summary.mean * metric.scale, row, xerr=spread, capsize=3, **_point(study, name))
        if summary.count > 1:
            seeds = [o.results[metric.key] * metric.scale for o in study.variants[name] if metric.key in o.results]
            axis.plot(seeds, [row] * len(seeds), ".", color=INK, markersize=2.5, alpha=0.6, zorder=3)
    axis.set_yticks(range(len(summaries)), [textwrap.fill(name, 20) for name in summaries])
    axis.set_ylim(len(summaries) - 0.5, -0.5)
    axis.set_xlabel(metric.unit.strip())
    axis.locator_params(axis="x", nbins=4)
    axis.ticklabel_format(axis="x", useOffset=False)
    values = "; ".join(f"{name}: {metric.show(summary.mean, summary.spread)}" for name, summary in summaries.items())
    return Plot(figure, metric.title, f"{metric.title} of each variant. {values}.")


def layers_plot(study: Study) -> Plot | None:
    """The cosine to the teacher over the layers, a line for each variant."""
    layers = sorted({int(m[1]) for o in study.finished for key in o.results if (m := LAYER.fullmatch(key))})
    if len(layers) < 2:
        return None
    figure, axis = _figure()
    for name, group in study.variants.items():
        rows = [{int(m[1]): v for key, v in o.results.items() if (m := LAYER.fullmatch(key))} for o in group]
        rows = [row for row in rows if row]
        if rows:
            values = [np.mean([row[layer] for row in rows if layer in row] or [np.nan]) for layer in layers]
            axis.plot(layers, values, label=name, markersize=3, **_line(study, name))
    axis.set_xlabel("layer")
    axis.set_ylabel("cosine to the teacher")
    axis.locator_params(axis="x", integer=True)
    _legend(study, figure, axis)
    return Plot(figure, "Cosine to the teacher, by layer", "A line for each variant; the table has the numbers.")


def loss_plots(study: Study, curves: Mapping[str, Sequence[Mapping[str, Curve]]]) -> Iterator[Plot]:
    """Each loss over the steps, a line for each run; logarithmic where all values are positive."""
    names = sorted({key for runs in curves.values() for run in runs for key in run if key.startswith("train/")})
    for key in [name for name in names if name != "train/loss"]:  # the sum
        figure, axis = _figure()
        lowest = np.inf
        for name in study.variants:
            for number, run in enumerate(run for run in curves.get(name, ()) if key in run):
                steps, values = thinned(run[key])
                lowest = min(lowest, *values)
                style = _line(study, name) | {"marker": "", "linewidth": 1}
                axis.plot(steps, values, label=name if number == 0 else None, **style)
        if lowest > 0:
            _logarithmic(axis)
        axis.set_xlabel("step")
        _legend(study, figure, axis)
        loss = key.removeprefix("train/").replace("_", " ")
        yield Plot(figure, f"Loss: {loss}", f"The loss {loss}, times its weight, over the steps of training.")


def thinned(curve: Curve) -> Curve:
    """A curve with at most `MOST_POINTS` points: means of neighbours."""
    steps, values = curve
    if len(steps) <= MOST_POINTS:
        return steps, values
    pieces = np.array_split(np.arange(len(steps)), MOST_POINTS)
    return [int(np.mean(np.take(steps, p))) for p in pieces], [float(np.mean(np.take(values, p))) for p in pieces]


def to_svg(plot: Plot, number: int) -> str:
    """A figure as an inline SVG: no outside reference, own ids, the page's colours, as wide as there is room."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _style():
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="plot{number}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#plot{number}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    start = svg.index(">") + 1
    # Without its own size it fills its place; the namespaces are known to every HTML reader.
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="plot{number}-alt">'
    return f'{opening}<title id="plot{number}-alt">{html.escape(plot.alt)}</title>{svg[start:].strip()}'


def to_png(plot: Plot, path: Path) -> None:
    """A figure as an image on white."""
    with _style():
        plot.figure.savefig(path, dpi=200, facecolor="white")


def _style() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError("the plots of a report need matplotlib: pip install uniflow[report]") from error
    return mpl.rc_context(STYLE)


def _figure(height: float = SIZE[1]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def _legend(study: Study, figure: Any, axis: Any) -> None:
    names = axis.get_legend_handles_labels()[1]
    if names and len(study.variants) > 1:
        figure.legend(loc="outside lower center", ncols=2 if max(map(len, names)) <= 22 else 1)


def _logarithmic(axis: Any) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _with_unit(metric: Metric) -> str:
    return f"{metric.title} ({metric.unit.strip()})" if metric.unit else metric.title


def _number(study: Study, name: str) -> tuple[int, int]:
    """The variant's colour and, once the colours are used up, its shape; the same in every plot."""
    position = list(study.options).index(name)
    return position % len(SERIES), position // len(SERIES) % len(MARKERS)


def _point(study: Study, name: str) -> dict[str, Any]:
    color, shape = _number(study, name)
    return {"color": SERIES[color], "fmt": MARKERS[shape], "markersize": 5, "elinewidth": 1.2}


def _line(study: Study, name: str) -> dict[str, Any]:
    color, shape = _number(study, name)
    return {"color": SERIES[color], "linestyle": LINES[shape], "marker": MARKERS[shape], "linewidth": 1.4}
