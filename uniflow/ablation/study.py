"""Runs and what they have measured, grouped by variant; what may be said about their differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uniflow.ablation.metrics import MEANINGS, Metric
from uniflow.ablation.state import FINISHED


@dataclass
class Outcome:
    """One run.

    Args:
        variant: the variant's name.
        seed: its seed; None if it is not known.
        folder: its folder.
        options: those that differ between variants: name -> value as text.
        state: finished, failed, running, interrupted or not yet run.
        error: of a failed run, why.
        results: the numbers in test_results.json, by name.
        protocol: fingerprint of the evaluation's protocol, if the results hold one.
        seconds: wall time.
        steps: optimizer steps of its last.ckpt.
    """

    variant: str
    seed: int | None
    folder: Path
    options: Mapping[str, str] = field(default_factory=dict)
    state: str = FINISHED
    error: str = ""
    results: Mapping[str, float] = field(default_factory=dict)
    protocol: str | None = None
    seconds: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Summary:
    """Mean over seeds and sample standard deviation (divisor n - 1); no spread for a single value."""

    mean: float
    spread: float | None
    count: int


@dataclass
class Study:
    """What a report shows.

    Args:
        title: its heading.
        description: a few sentences.
        outcomes: the runs, variant by variant.
        metrics: the columns.
        facts: what was run, how and where: pairs of a word and a text.
    """

    title: str
    description: str
    outcomes: Sequence[Outcome]
    metrics: Sequence[Metric]
    facts: Sequence[tuple[str, str]]

    @property
    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == FINISHED]

    @property
    def failed(self) -> list[Outcome]:
        """Runs with an error."""
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def variants(self) -> dict[str, list[Outcome]]:
        """The finished runs of each variant that has any, in order."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.finished:
            groups.setdefault(outcome.variant, []).append(outcome)
        return groups

    @property
    def has_seeds(self) -> bool:
        """Whether any variant has more than one finished run."""
        return any(len(group) > 1 for group in self.variants.values())

    @property
    def options(self) -> dict[str, dict[str, str]]:
        """The options of each variant, finished or not."""
        return {outcome.variant: dict(outcome.options) for outcome in self.outcomes}

    def shown_metrics(self) -> list[Metric]:
        """The columns that any finished run has a number for."""
        return [metric for metric in self.metrics if any(metric.key in o.results for o in self.finished)]

    def missing_metrics(self) -> list[str]:
        """Names of the columns that no finished run has a number for."""
        return [metric.key for metric in self.metrics if metric not in self.shown_metrics()]

    def summaries(self, key: str) -> dict[str, Summary]:
        """Mean and spread of a metric for each variant that has it."""
        values = {name: [o.results[key] for o in group if key in o.results] for name, group in self.variants.items()}
        return {name: summarise(runs) for name, runs in values.items() if runs}


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), spread, len(values))


def best(metric: Metric, summaries: Mapping[str, Summary]) -> set[str]:
    """The variants with the best mean; none where a metric has no better or worse, or all means are equal."""
    means = {name: summary.mean for name, summary in summaries.items() if math.isfinite(summary.mean)}
    if metric.better == "none" or len(set(means.values())) < 2:
        return set()
    top = (max if metric.better == "higher" else min)(means.values())
    return {name for name, mean in means.items() if mean == top}


def caveats(study: Study) -> list[str]:
    """What the numbers do not show: columns that are missing, and best values that may be best by chance."""
    lines = [f"No run that has finished has a number called {key}." for key in study.missing_metrics()]
    counts = [len(group) for group in study.variants.values()]
    if len(counts) > 1 and min(counts) < 2:
        who = "Each variant was" if max(counts) < 2 else "Some variants were"
        lines.append(f"{who} run with one seed: its spread is not known, so small differences say nothing.")
    for metric in study.shown_metrics():
        summaries = study.summaries(metric.key)
        for name in [name for name in summaries if name in best(metric, summaries)][:1]:  # a tie is also one line
            rivals = [other for other in summaries if other != name and _close(summaries[name], summaries[other])]
            if rivals:
                lines.append(
                    f"{metric.title}: {name} is not told apart from noise against {', '.join(rivals)} "
                    f"(the difference is not larger than the standard deviation over seeds)."
                )
    return lines


def _close(left: Summary, right: Summary) -> bool:
    """Whether two means differ by no more than the larger of the known spreads."""
    spreads = [spread for spread in (left.spread, right.spread) if spread is not None]
    return bool(spreads) and abs(left.mean - right.mean) <= max(spreads)


def glossary(study: Study) -> list[str]:
    """What the columns of a study mean, one line for each that the reports have words for."""
    shown = study.shown_metrics()
    return [f"{metric.title}: {MEANINGS[metric.key]}." for metric in shown if metric.key in MEANINGS]


def protocol_warning(study: Study) -> str | None:
    """One line if the runs were not all evaluated by the same protocol."""
    groups: dict[str, list[str]] = {}
    for outcome in study.finished:
        names = groups.setdefault(outcome.protocol or "none recorded", [])
        if outcome.variant not in names:
            names.append(outcome.variant)
    if len(groups) < 2:
        return None
    which = "; ".join(f"{protocol}: {', '.join(names)}" for protocol, names in groups.items())
    return f"Warning: not all runs were evaluated by the same protocol, so their numbers cannot be compared ({which})."
