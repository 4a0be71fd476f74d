"""`uniflow understand`: every understanding task on teacher, student, latents and blank features."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from uniflow.ablation.launch import discard, is_outdated, launch_local, standing
from uniflow.ablation.options import check_options, parse_options
from uniflow.ablation.plan import Run, option_problem, option_word
from uniflow.ablation.state import FINISHED
from uniflow.cli.shipped import find, find_file
from uniflow.core.atomic import replacing
from uniflow.core.part import part_config
from uniflow.core.yaml_files import read_yaml
from uniflow.tokenizer import Tokenizer
from uniflow.tools.look import names_weights
from uniflow.tools.understand_report import Problem, print_table, read_problem, write_page

TASKS = ("classification", "segmentation", "depth", "detection", "vqa")
SMOKE = {
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 4,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 2,
}
Source = dict[str, Any]


def understand(
    *,
    tokenizer: str,
    tasks: list[str] | None = None,
    compare: dict[str, str] | None = None,
    teacher: str | None = None,
    data: Path | None = None,
    budget: Literal["smoke", "full"] = "full",
    out: Path = Path("runs/understand"),
    jobs: int = 2,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    redo: bool = False,
) -> int:
    """Train and test the same heads on the features of teacher, student, latents and on blank ones; compare them.

    Writes OUT/understand.json ({task: {metric, better, teacher, student, latents, baseline, ...}}), OUT/understand.html
    with pictures, and prints the table. Each run is an ordinary `uniflow fit` and `uniflow test` in OUT/runs/TASK. The
    same command again continues.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or its name on the hub.
        tasks: names of tasks, which stand for recipes on Scenes, or recipes of your own. Default: all five of
            classification, segmentation, depth, detection, vqa.
        compare: further tokenizers whose students are judged: name -> tokenizer, such as
            '{"no_distillation": "runs/quickstart/no_distillation/tokenizer"}'.
        teacher: component file of the original encoder. Default: as the tokenizer's config names it.
        data: component file of a data module for all tasks, instead of the one in their recipes.
        budget: smoke takes four steps each, to see that everything runs; its numbers mean nothing.
        out: folder for runs and results.
        jobs: runs at a time; with several, each has one thread.
        seed: of all runs.
        options: further options of all runs, such as '{"trainer.max_steps": 50}'.
        redo: whether to delete and repeat runs that were made with other settings or an older tokenizer.

    Returns:
        The exit code: 0 if all runs have finished, else 1.

    Raises:
        ValueError: if a name or an option is wrong, the teacher is not known, or there are runs with other settings.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    for name in options or {}:
        if problem := option_problem(name):
            raise ValueError(f"--options: {problem}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, not a folder")
    settings = {**({"data": str(data)} if data else {}), **(SMOKE if budget == "smoke" else {}), **(options or {})}
    sources = _sources(tokenizer, compare or {}, teacher)
    runs: dict[str, list[Run]] = {}
    metrics = {}
    for name, recipe in _recipes(tasks or list(TASKS)).items():
        metrics[name], layers = _recipe_facts(recipe, settings)
        runs[name] = [
            Run(
                f"{name}, {who}",
                seed,
                (recipe,),
                {**_source_option(source, layers), **settings},
                out / "runs" / name / who,
            )
            for who, source in sources.items()
        ]
    every = [run for group in runs.values() for run in group]
    check_options(every)
    _discard([run for run in every if is_outdated(run) or _is_older(run)], redo)
    waiting = [run for run in every if standing(run).state != FINISHED]
    print(f"{len(runs)} tasks, {len(every)} runs, {len(every) - len(waiting)} finished before", flush=True)
    if waiting:
        launch_local(waiting, jobs)
    problems = [read_problem(name, *metrics[name], group) for name, group in runs.items()]
    command = shlex.join(["uniflow", *sys.argv[1:]]) if sys.argv[1:2] == ["understand"] else "uniflow understand"
    _write(problems, out, command)
    return 0 if all(standing(run).state == FINISHED for run in every) else 1


def _write(problems: Sequence[Problem], out: Path, command: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "understand.json") as new:
        new.write_text(json.dumps({p.name: p.as_json() for p in problems}, indent=2) + "\n", encoding="utf-8")
    with replacing(out / "understand.html") as new:
        new.write_text(write_page(problems, command), encoding="utf-8")
    print_table(problems)
    print(f"\nPictures: {out / 'understand.html'}; numbers: {out / 'understand.json'}")


def _recipes(tasks: Sequence[str]) -> dict[str, Path]:
    """Task -> its recipe: of a name the one on Scenes, else a recipe as `-c` finds it."""
    recipes = {}
    for task in tasks:
        path = find(f"recipes/scenes_{task}", "recipe") if task in TASKS else find_file(task, "recipe")
        assert path is not None
        name = task if task in TASKS else path.stem
        if name in recipes:
            raise ValueError(f"--tasks names {name} twice")
        recipes[name] = path
    return recipes


def _recipe_facts(recipe: Path, settings: Mapping[str, Any]) -> tuple[tuple[str, str], Any]:
    """The metric that judges a recipe's task with its better direction, and the layers that its source reads."""
    words = [word for name, value in settings.items() for word in (f"--{name}", option_word(value))]
    model = parse_options(["-c", str(recipe), *words]).model
    module, _, name = model.class_path.rpartition(".")
    monitor = getattr(importlib.import_module(module), name).monitor
    if monitor is None or "source" not in model.init_args:
        raise ValueError(
            f"{recipe}: {name} is not an understanding task: it needs a source and a monitor, see docs/tasks.md"
        )
    source = model.init_args.source
    return monitor, (source.get("init_args") or {}).get("layers")


def _sources(tokenizer: str, compare: Mapping[str, str], teacher: str | None) -> dict[str, Source]:
    """Who is judged: name -> the source as YAML has it."""
    model = Tokenizer.from_pretrained(tokenizer)
    encoder = _teacher(model, teacher)
    spec = model.encoder.spec
    fixed = ("teacher", "student", "latents", "baseline")
    if taken := [name for name in compare if name in fixed or not name.isidentifier()]:
        raise ValueError(f"--compare: {taken[0]!r} cannot be a name; take a word that is not one of {', '.join(fixed)}")
    for path in compare.values():
        Tokenizer.from_pretrained(path)  # so that a wrong one is named before anything runs
    return {
        "teacher": _class("EncoderSource", encoder=encoder, layers="last"),
        "student": _class("TokenizerSource", tokenizer=tokenizer, layers="last"),
        "latents": _class("LatentSource", tokenizer=tokenizer, normalize=model.latent_statistics is not None),
        **{name: _class("TokenizerSource", tokenizer=path, layers="last") for name, path in compare.items()},
        "baseline": _class("BlankSource", patch_size=spec.patch_size, embed_dim=spec.embed_dim),
    }


def _teacher(model: Tokenizer, component: str | None) -> Source:
    if component is not None:
        return read_yaml(find_file(component, "component"))
    if not names_weights(model):
        raise ValueError(
            "the tokenizer's config does not say where its encoder's weights came from: give --teacher FILE"
        )
    return part_config(model.encoder)


def _class(name: str, **init_args: Any) -> Source:
    return {"class_path": f"uniflow.features.{name}", "init_args": init_args}


def _source_option(source: Source, layers: Any) -> dict[str, Any]:
    """The option that sets a source, with the recipe's layers where the source has layers."""
    if layers is None or "layers" not in source["init_args"]:
        return {"model.source": source}
    return {"model.source": {**source, "init_args": {**source["init_args"], "layers": layers}}}


def _is_older(run: Run) -> bool:
    """Whether a run was made before the tokenizer that it judges was written."""
    named = run.options["model.source"]["init_args"].get("tokenizer")
    state = standing(run)
    if named is None or not state.started:
        return False
    path = Path(named)
    file = path / "model.safetensors" if path.is_dir() else path
    return file.is_file() and state.attempt < file.stat().st_mtime


def _discard(outdated: Sequence[Run], redo: bool) -> None:
    if outdated and not redo:
        raise ValueError(
            f"{len(outdated)} runs, such as {outdated[0].folder}, were made with other settings or an older tokenizer: "
            "--redo true deletes them and makes them again, --out names another folder"
        )
    for run in outdated:
        discard(run)
