"""Run folders -> what they hold, as a `Study`."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uniflow.ablation.launch import RESULTS, standing
from uniflow.ablation.metrics import KNOWN
from uniflow.ablation.plan import Plan, Run, option_word, state_file, value_label
from uniflow.ablation.state import FAILED, FINISHED, State, now, read_state
from uniflow.ablation.study import Outcome, Study
from uniflow.core.json_files import read_json_object
from uniflow.core.yaml_files import read_yaml

PROTOCOL = "protocol/fingerprint"
SEED_FOLDER = re.compile(r"seed[-_]?\d+")
# Entries of a run's config.yaml in which runs of one variant differ.
NOT_A_SETTING = ("run", "seed_everything", "ckpt_path", "verbose")


def study_of_plan(plan: Plan, runs: Sequence[Run], command: str) -> Study:
    """What the runs of an ablation have measured so far.

    Args:
        plan: the ablation.
        runs: its runs.
        command: the command line for the report.
    """
    states = {run.folder: standing(run) for run in runs}
    outcomes = [
        _outcome(run.variant, run.seed, run.folder, states[run.folder], _labels(plan.variants[run.variant]))
        for name in plan.variants
        for run in runs
        if run.variant == name
    ]
    finished = sum(outcome.state == FINISHED for outcome in outcomes)
    facts = [
        ("Command", command),
        ("Recipe", ", ".join(map(str, plan.base))),
        ("Options of all runs", _option_text(plan.options)),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Runs", f"{finished} of {len(outcomes)} finished"),
        *_circumstances([state for state in states.values() if state.started]),
    ]
    return Study(plan.name, plan.description, outcomes, plan.metrics, [fact for fact in facts if fact[1]])


def study_of_folders(folders: Sequence[Path], out: Path) -> Study:
    """Finished runs side by side; those whose configurations differ in nothing but the seed are one variant.

    Args:
        folders: folders of runs that `uniflow test` has been through.
        out: the report's folder.

    Raises:
        FileNotFoundError: if a run has no test results.
    """
    for folder in folders:
        read_results(folder)
    groups: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(folders):
        groups.setdefault(_settings(folder), []).append(folder)
    outcomes = []
    for name, group in zip(_names(list(groups.values())), groups.values(), strict=True):
        for folder in group:
            state = read_state(state_file(folder)) or State()
            state.state, state.error = FINISHED, ""
            outcomes.append(_outcome(name, _config(folder).get("seed_everything"), folder, state, {}))
    states = [known for folder in folders if (known := read_state(state_file(folder))) is not None]
    command = shlex.join(["uniflow", "report", *map(str, folders), "--out", str(out)])
    facts = [("Command", command), ("Date of this report", now()), *_circumstances(states)]
    metrics = [metric for key, metric in KNOWN.items() if any(key in outcome.results for outcome in outcomes)]
    return Study("Comparison of runs", "", outcomes, metrics, facts)


def _outcome(variant: str, seed: Any, folder: Path, state: State, options: dict[str, str]) -> Outcome:
    outcome = Outcome(variant, seed if isinstance(seed, int) else None, folder, options, state.state)
    outcome.error = state.error if state.state == FAILED else ""
    outcome.seconds = state.seconds or None
    if state.state == FINISHED:
        results = read_results(folder)
        protocol = results.get(PROTOCOL)
        outcome.protocol = None if protocol is None else str(protocol)
        outcome.results = {key: float(value) for key, value in results.items() if isinstance(value, int | float)}
        outcome.steps = _steps(folder / "last.ckpt")
    return outcome


def read_results(folder: Path) -> dict[str, Any]:
    """The numbers of a run that `uniflow test` has been through.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file does not hold any.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {RESULTS}: "
            f"run `uniflow test -c {folder}/config.yaml --ckpt_path {folder}/last.ckpt` first"
        )
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; run `uniflow test` again") from error


def _steps(checkpoint: Path) -> int | None:
    """The step that a checkpoint was written at; None if there is none, or it is a sharded one."""
    if not checkpoint.is_file():
        return None
    try:
        return int(torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)["global_step"])
    except (pickle.UnpicklingError, KeyError, RuntimeError):  # not a checkpoint of a run, or with a user's own classes
        return None


def _labels(options: Any) -> dict[str, str]:
    return {name: value_label(value) for name, value in options.items()}


def _option_text(options: Any) -> str:
    return " ".join(f"--{name} {shlex.quote(option_word(value))}" for name, value in options.items())


def _circumstances(states: Sequence[State]) -> list[tuple[str, str]]:
    """When and where runs were made; every different answer once."""

    def every(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(value for value in values if value))

    started = sorted(state.started for state in states if state.started)
    dates = [started[0], started[-1]] if started and started[0] != started[-1] else started[:1]
    facts = [
        ("Started", " to ".join(dates)),
        ("Threads a process", every([state.threads for state in states])),
        ("Machine", every([state.made_with.get("machine", "") for state in states])),
        ("Versions", every([state.made_with.get("versions", "") for state in states])),
        ("Commit", every([state.made_with.get("commit", "") for state in states])),
    ]
    return [(word, text) for word, text in facts if text]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    content = read_yaml(path) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def _settings(folder: Path) -> str:
    """A run's configuration without folder and seed, as text; a run without a configuration is like no other."""
    config = {key: value for key, value in _config(folder).items() if key not in NOT_A_SETTING}
    return json.dumps(config, sort_keys=True, default=str) if config else str(folder.resolve())


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """A name for each group of folders: what their names have in common without the seed; two of one name get more."""
    shared = [_common_name(group) for group in groups]
    paths = [group[0].resolve() for group in groups]
    own = ["/".join(path.parts[-2:]) if SEED_FOLDER.fullmatch(path.name) else path.name for path in paths]
    names = [name if shared.count(name) == 1 else longer for name, longer in zip(shared, own, strict=True)]
    for count in range(2, max(len(path.parts) for path in paths) + 1):  # folders above, as far as they tell apart
        names = [
            name if names.count(name) == 1 else "/".join(path.parts[-count:])
            for name, path in zip(names, paths, strict=True)
        ]
    return names


def _common_name(group: Sequence[Path]) -> str:
    """`adaptive` for adaptive/seed0 and adaptive/seed1, and for adaptive_s0 and adaptive_s1; else the first's name."""
    names = set()
    for folder in group:
        if SEED_FOLDER.fullmatch(folder.name):
            names.add(folder.resolve().parent.name)
        else:
            names.add(re.sub(r"[-_. ]*(seed|s)?[-_]?\d+$", "", folder.name) if len(group) > 1 else folder.name)
    return names.pop() if len(names) == 1 and "" not in names else group[0].name
