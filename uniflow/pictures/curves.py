"""How training went: losses, and each layer's distance and weight, from the TensorBoard files of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = tuple[list[int], list[float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Steps and values of every scalar that a run has logged, by name; of a resumed run all parts together."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: ([e.step for e in events.Scalars(name)], [e.value for e in events.Scalars(name)])
        for name in events.Tags()["scalars"]
    }


def plot_curves(runs: dict[str, Path], path: Path) -> bool:
    """Draw a figure with one row a run: losses, distances of the layers, weights of the layers.

    Args:
        runs: folder of each run, by the name to show.
        path: the PNG to write.

    Returns:
        Whether anything was drawn: not without matplotlib (extra `report`), nor for runs that logged nothing.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves = {name: run_curves for name, run in runs.items() if (run_curves := read_curves(run))}
    if not curves:
        return False
    figure = Figure(figsize=(12, 3 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 3, squeeze=False)
    for row, (name, run_curves) in zip(axes, curves.items(), strict=True):
        losses = {key: curve for key, curve in run_curves.items() if key.startswith("train/") and key != "train/loss"}
        _draw(row[0], f"{name}: losses", {key.removeprefix("train/"): curve for key, curve in losses.items()})
        row[0].set_yscale("log")
        if losses:
            row[0].legend(fontsize=7)
        for axis, title, what in (
            (row[1], "distance to the teacher, by layer", "distance"),
            (row[2], "weight, by layer", "weight"),
        ):
            layers = _layers(run_curves, what)
            # From dark to light with depth, so that the order shows without reading the legend.
            _draw(axis, title, layers, colormaps["viridis"](np.linspace(0, 0.92, len(layers))))
        _layer_legend(row[2])
    figure.savefig(path, dpi=100)
    return True


def _draw(axis: Any, title: str, curves: dict[str, Curve], colors: np.ndarray | None = None) -> None:
    if not curves:  # nothing was distilled
        axis.set_axis_off()
        return
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axis.plot(steps, values, label=name, linewidth=1, color=None if colors is None else colors[number])
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")


def _layer_legend(axis: Any) -> None:
    """Layers beside the axis, the last on top as its weight mostly is; of many every n-th, counted from the last."""
    lines, names = axis.get_legend_handles_labels()
    if names:
        every = -(-len(names) // 12)
        legend_position = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        axis.legend(lines[::-every], names[::-every], title="layer", fontsize=7, title_fontsize=7, **legend_position)


def _layers(curves: dict[str, Curve], what: str) -> dict[str, Curve]:
    keys = {match[1]: key for key in curves if (match := re.fullmatch(rf"layers/{what}_(\d+)", key))}
    return {str(int(layer)): curves[keys[layer]] for layer in sorted(keys)}
