"""`uniflow ablate`: all runs of an ablation, then its report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from uniflow.ablation.cluster import Slurm, launch_slurm
from uniflow.ablation.collect import study_of_plan
from uniflow.ablation.launch import discard, is_outdated, launch_local, standing
from uniflow.ablation.options import check_options
from uniflow.ablation.plan import Plan, Run, option_problem, option_word, read_plan, unknown
from uniflow.ablation.state import FINISHED
from uniflow.ablation.write import write_report
from uniflow.cli.shipped import find_file


def ablate(
    config: Path,
    out: Path | None = None,
    jobs: int = 1,
    launcher: Literal["local", "slurm"] = "local",
    slurm: Slurm | None = None,
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    options: dict[str, Any] | None = None,
    redo: bool = False,
    dry_run: bool = False,
) -> int:
    """Run an ablation: train and evaluate each variant with each seed, then write tables, plots and images.

    The same command again continues: finished runs are kept, a run that was stopped goes on from its last.ckpt, one
    that failed is tried again.

    Args:
        config: the ablation, a YAML file; docs/ablation.md says what it holds.
        out: folder for the runs and the report. Default: runs/ablations/NAME_OF_THE_FILE.
        jobs: runs at a time. With several on this machine, each has one thread (OMP_NUM_THREADS=1).
        launcher: local starts processes here, slurm submits jobs (pip install uniflow[slurm]).
        slurm: what each job asks SLURM for.
        seeds: instead of the file's seeds.
        only: run only these variants; the report still shows all that were run.
        options: further options of all runs, such as '{"trainer.max_steps": 50}'; those of a variant come after them.
        redo: whether to delete and repeat runs that were made with other settings; without it they are refused.
        dry_run: show the commands and where each run stands; nothing is run or written.

    Returns:
        The exit code: 0 if all runs that were asked for have finished, else 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file, an option or a name in it is wrong, or a run was made with other settings.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    config = find_file(str(config), "ablation")
    plan = _changed(read_plan(config), seeds, options)
    for name in only or []:
        if name not in plan.variants:
            raise ValueError(f"--only: {unknown('variant', name, list(plan.variants))}")
    out = Path("runs/ablations") / config.stem if out is None else out
    runs = plan.runs(out)
    chosen = [run for run in runs if only is None or run.variant in only]
    check_options(chosen)
    outdated = [run for run in chosen if is_outdated(run)]
    if dry_run:
        _show(chosen, outdated)
        return 0
    _discard(outdated, redo)
    waiting = [run for run in chosen if standing(run).state != FINISHED]
    print(f"{plan.name}: {len(chosen)} runs, {len(chosen) - len(waiting)} finished before", flush=True)
    if waiting and launcher == "slurm":
        launch_slurm(waiting, jobs, out / "slurm", slurm or Slurm())
    elif waiting:
        launch_local(waiting, jobs)
    write_report(study_of_plan(plan, runs, _command(config, out, seeds, options)), out)
    return 0 if all(standing(run).state == FINISHED for run in chosen) else 1


def _changed(plan: Plan, seeds: list[int] | None, options: dict[str, Any] | None) -> Plan:
    if seeds is not None:
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"--seeds must be different whole numbers, got {seeds}")
        plan = dataclasses.replace(plan, seeds=tuple(seeds))
    for name in options or {}:
        if problem := option_problem(name):
            raise ValueError(f"--options: {problem}")
    return dataclasses.replace(plan, options={**plan.options, **(options or {})})


def _discard(outdated: Sequence[Run], redo: bool) -> None:
    if outdated and not redo:
        names = "; ".join(run.label for run in outdated[:4]) + (" and others" if len(outdated) > 4 else "")
        raise ValueError(
            f"{outdated[0].folder.parents[1]} holds {len(outdated)} runs that were made with other settings ({names}): "
            f"--redo deletes them and makes them again, --out names another folder"
        )
    for run in outdated:
        discard(run)


def _show(runs: Sequence[Run], outdated: Sequence[Run]) -> None:
    for run in runs:
        where = "made with other settings" if run in outdated else standing(run).state
        print(f"# {run.label}: {where}")
        for words in (run.fit_words(), run.test_words()):
            print(shlex.join(["uniflow", *words]))


def _command(config: Path, out: Path, seeds: list[int] | None, options: dict[str, Any] | None) -> str:
    """The command line that makes the report again."""
    words = ["uniflow", "ablate", str(config), "--out", str(out)]
    words += ["--seeds", option_word(seeds)] if seeds is not None else []
    return shlex.join(words + (["--options", option_word(options)] if options else []))
