"""Every file under configs/ablations: it is read, `uniflow fit` takes the options of each variant, and one is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_fixtures import REPOSITORY

from uniflow.ablation.plan import Run, read_plan

FILES = sorted((REPOSITORY / "configs/ablations").glob("*.y*ml"))


def name(file: Path) -> str:
    return file.name


def each_value_once(runs: list[Run]) -> list[Run]:
    """Few runs that have every value of every option."""
    values = {run.variant: {json.dumps(pair) for pair in run.options.items()} for run in runs}
    missing, chosen = set().union(*values.values()), []
    while missing:
        chosen.append(max(runs, key=lambda run: len(values[run.variant] & missing)))
        missing -= values[chosen[-1].variant]
    return chosen


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_variant_is_what_it_says(project: Path, resolve: Callable[..., dict[str, Any]], file: Path) -> None:
    plan = read_plan(file)
    runs = {run.variant: run for run in plan.runs(Path("out"))}
    assert len(runs) > 1
    assert len({json.dumps(run.options, sort_keys=True) for run in runs.values()}) == len(runs)
    if len(runs) > 12:  # reading a recipe takes a second
        runs = {run.variant: run for run in each_value_once(list(runs.values()))}
    configs = {variant: resolve(*run.recipe_words) for variant, run in runs.items()}
    texts = [json.dumps(config, sort_keys=True, default=str) for config in configs.values()]
    assert len(set(texts)) == len(texts), "two variants are the same"
    for variant, run in runs.items():
        for option, value in run.options.items():
            node: Any = configs[variant]
            for part in option.split("."):
                node = node["init_args"][part] if "class_path" in node else node[part]
            if isinstance(value, str) and value.endswith(".yaml"):
                value = yaml.safe_load(Path(value).read_text())
            if isinstance(value, dict):
                assert node["class_path"].rpartition(".")[2] == value["class_path"].rpartition(".")[2]
            else:
                assert node == value, f"{variant}: {option}"


def test_documented(project: Path) -> None:
    text = (REPOSITORY / "docs/ablation.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file.name}`" in text


def test_a_wrong_option_is_refused_before_anything_runs(project: Path, uniflow: Callable[..., Any]) -> None:
    for options, expected in {
        "{model.wieghting: Uniform}": "variant 'b': model: there is no argument 'wieghting'; did you mean weighting?",
        "{model.weighting: Unifrom}": "no LayerWeighting is called 'Unifrom'; did you mean UniformWeighting?",
        "{trainer.max_steps: many}": "trainer.max_steps",
    }.items():
        Path("plan.yaml").write_text(f"base: recipe.yaml\nvariants: {{b: {options}, a: {{}}}}\n")
        assert expected in uniflow("ablate", "plan.yaml", "--out", "out").error
    assert not Path("out").exists()
    Path("plan.yaml").write_text("base: recipe.yaml\nvariants: {a: {}, b: {model.weighting: Uniform}}\n")
    result = uniflow("ablate", "plan.yaml", "--dry_run", "true")
    assert result.code == 0, result.err
    assert "uniflow fit -c recipe.yaml --model.weighting Uniform --seed_everything 0" in result.out
