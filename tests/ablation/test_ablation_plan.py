"""The YAML file of an ablation: what it amounts to, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from uniflow.ablation.plan import Plan, option_word, read_plan, value_label

FULL = """
name: A title
description: Why.
base: [recipes/first.yaml, recipes/second.yaml]
options: {trainer.max_steps: 5, model.decoder.width: 8}
variants:
  plain:
  wide: {model.decoder.width: 16, model.weighting: parts/uniform.yaml}
grid:
  model.decoder.depth: [0, 3]
  model.encoder.depth: [1]
seeds: [0, 4]
metrics: {test/psnr: higher, test/fid: lower}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Read a plan from this text, called from a folder beside it."""
    folder = tmp_path / "ablations"
    for name, content in {
        "recipes/first.yaml": "model: {weighting: ../parts/uniform.yaml}",
        "recipes/second.yaml": "trainer: {max_steps: 3}",
        "parts/uniform.yaml": "class_path: Uniform",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(text: str) -> Plan:
        (folder / "plan.yaml").write_text(text)
        return read_plan(Path("../ablations/plan.yaml"))

    return call


def test_every_variant_at_every_point_of_the_grid(write: Callable[[str], Plan]) -> None:
    plan = write(FULL)
    assert (plan.name, plan.description, plan.seeds) == ("A title", "Why.", (0, 4))
    assert [(m.key, m.better) for m in plan.metrics] == [("test/psnr", "higher"), ("test/fid", "lower")]
    points = ["decoder.depth=0, encoder.depth=1", "decoder.depth=3, encoder.depth=1"]
    assert list(plan.variants) == [f"{name}, {point}" for name in ("plain", "wide") for point in points]
    runs = plan.runs(Path("out"))
    assert [(run.variant, run.seed) for run in runs] == [(name, seed) for seed in (0, 4) for name in plan.variants]
    assert len({run.folder for run in runs}) == len(runs)
    run = runs[3]
    assert run.folder == Path("out/runs/wide_decoder.depth=3_encoder.depth=1/seed0")
    # The variant's own value stands in its own place, and paths are as seen from the current directory.
    expected = "fit -c ../ablations/recipes/first.yaml -c ../ablations/recipes/second.yaml --trainer.max_steps 5"
    expected += " --model.decoder.width 16 --model.weighting ../ablations/parts/uniform.yaml"
    expected += f" --model.decoder.depth 3 --model.encoder.depth 1 --seed_everything 0 --run {run.folder}"
    assert " ".join(run.fit_words()) == expected
    assert run.fit_words(resume=True) == [*run.fit_words(), "--ckpt_path", "last"]
    assert " ".join(run.test_words()) == f"test -c {run.folder}/config.yaml --run {run.folder} --ckpt_path last"


def test_only_a_base(write: Callable[[str], Plan]) -> None:
    plan = write("base: recipes/first.yaml")
    assert (plan.name, plan.seeds, dict(plan.variants)) == ("plan", (0,), {"base": {}})
    assert {"test/psnr", "test/probe_student"} <= {metric.key for metric in plan.metrics}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- base", "an ablation is a mapping"),
        ("base: [", "is not valid YAML"),
        ("base: recipes/first.yaml\nbase: recipes/second.yaml", "'base' stands twice"),
        ("basis: recipes/first.yaml", "there is no key 'basis'; did you mean base? known: name,"),
        ("{}", "base must be a recipe's path or a list of them, got None"),
        ("base: none.yaml", "none.yaml, which does not exist"),
        ("base: B\nname: 3", "name must be text, got 3"),
        ("base: B\noptions: [a]", "options must map options to values"),
        ("base: B\noptions: {--trainer.max_steps: 3}", "'--trainer.max_steps' is not an option; write it as in"),
        ("base: B\noptions: {seed_everything: 3}", "seed_everything cannot be set here; list the seeds under seeds:"),
        ("base: B\nvariants: {a: {run: x}}", "variants.a: run cannot be set here; every run has its own folder"),
        ("base: B\nvariants: [a]", "variants must map names to options"),
        ("base: B\nvariants: {no: {}}", "the name False is not text; put it in quotes"),
        ("base: B\nvariants: {'...': {}}", "has no letter or digit"),
        ("base: B\nvariants: {a b: {}, a_b: {}}", "share the name or the folder 'a_b'"),
        ("base: B\ngrid: {a.b: 3}", "grid.a.b must be a list of values, got 3"),
        ("base: B\ngrid: {ckpt_path: [x]}", "grid: ckpt_path cannot be set here"),
        ("base: B\ngrid: {a.b: [1, 1]}", "two points share the name 'b=1'"),
        ("base: B\nseeds: 3", "seeds must be a list of different whole numbers, got 3"),
        ("base: B\nseeds: [1, 1]", "seeds must be a list of different whole numbers"),
        ("base: B\nseeds: [true]", "seeds must be a list of different whole numbers"),
        ("base: B\nmetrics: [test/psnr]", "metrics must map names in test_results.json to higher, lower, none"),
        ("base: B\nmetrics: {test/psnr: up}", "metrics.test/psnr must be one of higher, lower, none, got 'up'"),
    ],
)
def test_refused(write: Callable[[str], Plan], text: str, message: str) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        write(text.replace("base: B", "base: recipes/first.yaml"))
    assert message in str(caught.value)
    assert "plan.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no ablation nowhere\.yaml"):
        read_plan(Path("nowhere.yaml"))


def test_the_digest_follows_all_that_a_run_is_told(write: Callable[[str], Plan], tmp_path: Path) -> None:
    def digest(text: str = FULL, number: int = 2) -> str:
        return write(text).runs(Path("out"))[number].digest()

    first = digest()
    assert first == digest("# a remark\n" + FULL.replace("A title", "Another"))
    assert first == digest(FULL.replace("test/fid", "test/lpips").replace("[0, 4]", "[0, 4, 5]"))
    seen = {first, digest(number=6), digest(FULL.replace("max_steps: 5", "max_steps: 6"))}
    seen.add(digest(FULL.replace("depth: [1]", "depth: [2]")))
    recipe = tmp_path / "ablations/recipes/second.yaml"
    recipe.write_text("trainer: {max_steps: 3}  # only a remark")
    assert digest() == first
    recipe.write_text("trainer: {max_steps: 4}")
    seen.add(digest())
    component = tmp_path / "ablations/parts/uniform.yaml"  # named by the first recipe, and by this variant's options
    component.write_text("class_path: LastLayer")
    seen.add(digest())
    assert len(seen) == 6


VALUES = {
    "model.distillation_weight": 1e-05,
    "model.weighting": {"class_path": "uniflow.distill.Adaptive", "init_args": {"beta": 4.0, "prior": 0.5}},
    "model.eval_steps": [1, 2],
    "trainer.max_time": None,
    "trainer.enable_progress_bar": False,
    "trainer.precision": "32-true",
    "data.size": 32,
    "ema": None,
}


def test_values_arrive_at_the_command_line_as_they_are(project: Path, resolve: Callable[..., dict[str, Any]]) -> None:
    words = [word for name, value in VALUES.items() for word in (f"--{name}", option_word(value))]
    config = resolve("-c", "recipe.yaml", *words)
    for name, value in VALUES.items():
        node: Any = config
        for part in name.split("."):
            node = node["init_args"][part] if "class_path" in node else node[part]
        assert node == value, name
        assert yaml.safe_load(yaml.safe_dump(value)) == value


def test_a_component_that_names_itself_is_refused(write: Callable[[str], Plan], tmp_path: Path) -> None:
    plan = write(FULL)
    for other in ("uniform.yaml", "../recipes/first.yaml"):
        (tmp_path / "ablations/parts/uniform.yaml").write_text(f"weighting: {other}")
        with pytest.raises(ValueError, match="names itself, by way of"):
            plan.runs(Path("out"))[0].digest()


def test_labels() -> None:
    assert value_label("uniflow.distill.Adaptive") == "Adaptive"
    assert value_label("../weightings/depth_prior.yaml") == "depth_prior"
    assert value_label(VALUES["model.weighting"]) == "Adaptive (beta 4.0, prior 0.5)"
    assert value_label(None) == "null"
    assert value_label("imagenet.train") == "imagenet.train"
