"""Runs side by side: their test results as tables, plots and images."""

from __future__ import annotations

from pathlib import Path

from uniflow.ablation.collect import study_of_folders
from uniflow.ablation.write import write_report


def report(runs: list[Path], out: Path = Path("report")) -> None:
    """Compare the test results of runs: report.html with tables, images and plots, report.md, results.csv.

    Runs whose configurations differ in nothing but the seed are one variant, shown by mean and standard deviation. The
    first run's reconstructions are shown largest.

    Args:
        runs: folders of runs that `uniflow test` has been through.
        out: folder for the report.

    Raises:
        FileNotFoundError: if a run has no test results.
    """
    write_report(study_of_folders(runs, out), out, first_large=True)
