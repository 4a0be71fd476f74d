"""How training went: losses, and each layer's distance and weight, from the TensorBoard files of runs."""

from __future__ import annotations

import re
from pathlib import Path

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
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves = {name: found for name, run in runs.items() if (found := read_curves(run))}
    if not curves:
        return False
    figure = Figure(figsize=(12, 3 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 3, squeeze=False)
    for row, (name, found) in zip(axes, curves.items(), strict=True):
        losses = {key: curve for key, curve in found.items() if key.startswith("train/") and key != "train/loss"}
        for axis, title, chosen in (
            (row[0], f"{name}: losses", losses),
            (row[1], "distance to the teacher, by layer", _layers(found, "distance")),
            (row[2], "weight, by layer", _layers(found, "weight")),
        ):
            for key, (steps, values) in chosen.items():
                axis.plot(steps, values, label=key.removeprefix("train/"), linewidth=1)
            if not chosen:  # nothing was distilled
                axis.set_axis_off()
                continue
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
            if len(chosen) <= 12:
                axis.legend(fontsize=7)
            axis.set_yscale("log" if axis is row[0] else "linear")
    figure.savefig(path, dpi=100)
    return True


def _layers(curves: dict[str, Curve], what: str) -> dict[str, Curve]:
    found = {match[1]: key for key in curves if (match := re.fullmatch(rf"layers/{what}_(\d+)", key))}
    return {str(int(layer)): curves[found[layer]] for layer in sorted(found)}
