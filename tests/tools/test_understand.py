"""`uniflow understand`: the same recipe on every source, one table, one page, one file of numbers."""

import json
import math

import pytest
import torch
from cli_fixtures import REPOSITORY

from uniflow import Tokenizer
from uniflow.ablation import launch
from uniflow.cli import main
from uniflow.tools.understand import TASKS, _source_option
from uniflow.tools.understand_report import Problem, results_table, write_page

EXAMPLE = REPOSITORY / "tests/third_party/third_party_example/task.py"
RECIPE = """
model:
  class_path: colors.MeanColorTask
  init_args:
    source: {class_path: TokenizerSource, init_args: {tokenizer: embedded, layers: 2}}
    heads: [{class_path: colors.MeanColorHead}]
data:
  class_path: Scenes
  init_args: {size: 32, train_length: 4, val_length: 2, test_length: 2, batch_size: 2, num_workers: 0}
trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_progress_bar: false, check_val_every_n_epoch: null}
images: null
"""


@pytest.fixture
def recipe(project, monkeypatch):
    (project / "colors.py").write_text(EXAMPLE.read_text())
    (project / "colors.yaml").write_text(RECIPE)
    # In this process, which has everything imported.
    monkeypatch.setattr(launch, "_call", lambda words, *_: main(words))
    return "colors.yaml"


def test_every_source_runs_and_lands_in_one_file(recipe, uniflow, project, monkeypatch):
    words = ("understand", "--tokenizer", "embedded", "--tasks", f"[{recipe}]", "--jobs", "1", "--out", "judged")
    compared = (*words, "--compare", '{"later": "later"}')
    assert uniflow(*words).code == 0
    (name, result), *others = json.loads((project / "judged/understand.json").read_text()).items()
    assert (name, result["metric"], result["better"], others) == ("colors", "test/mean_color_rmse", "min", [])
    assert list(result)[2:] == ["teacher", "student", "latents", "baseline"]
    assert result["student"] != result["teacher"] != result["latents"] != result["baseline"]
    saved = (project / "judged/runs/colors/teacher/config.yaml").read_text()
    assert "uniflow.encoders.EmbeddedViT" in saved
    assert "layers: 2" in saved
    page = (project / "judged/understand.html").read_text()
    assert "mean_color_rmse" in page
    assert "colors" in page

    # Options are parsed once more where they are used.
    monkeypatch.setattr("uniflow.tools.understand.check_options", lambda runs: None)
    again = uniflow(*words)
    assert again.code == 0
    assert "4 runs, 4 finished before" in again.out
    assert "--redo" in uniflow(*words, "--seed", "1").error
    assert "made with other settings" in uniflow(*words, "--options", '{"trainer.max_steps": 3}').error
    # A tokenizer that is written anew makes its own runs outdated, and no others.
    Tokenizer.from_pretrained("embedded").save_pretrained(project / "later")
    more = uniflow(*compared)
    assert (more.code, "5 runs, 4 finished before" in more.out) == (0, True)
    result = json.loads((project / "judged/understand.json").read_text())["colors"]
    assert list(result)[2:] == ["teacher", "student", "latents", "later", "baseline"]
    assert result["later"] == result["student"]
    Tokenizer.from_pretrained("embedded").save_pretrained(project / "later")
    assert "1 runs, such as" in uniflow(*compared).error

    attempt = (project / "judged/runs/colors/later/config.yaml").stat().st_mtime_ns
    redone = uniflow(*compared, "--redo")
    assert redone.code == 0
    assert "5 runs, 4 finished before" in redone.out
    assert (project / "judged/runs/colors/later/config.yaml").stat().st_mtime_ns > attempt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "[nothing]"], "nothing"),
        (["--tasks", "[colors.yaml, colors.yaml]"], "twice"),
        (["--tasks", "[quickstart]"], "not an understanding task"),
        (["--compare", '{"teacher": "embedded"}'], "cannot be a name"),
        (["--options", '{"run": "x"}'], "run cannot be set here"),
        (["--compare", '{"other": "not/there"}'], "not/there"),
        (["--out", "colors.yaml"], "--out colors.yaml is a file, not a folder"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--tokenizer", "not/there"], "not/there"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(recipe, uniflow, project, words, message):
    result = uniflow("understand", "--tokenizer", "embedded", "--tasks", f"[{recipe}]", "--out", "judged", *words)
    assert message in result.error
    assert not (project / "judged").exists()


def test_layers_are_those_of_the_recipe_where_a_source_has_layers():
    latents = {"class_path": "uniflow.features.LatentSource", "init_args": {"tokenizer": "x"}}
    student = {"class_path": "uniflow.features.TokenizerSource", "init_args": {"tokenizer": "x", "layers": "last"}}
    assert _source_option(student, None) == {"model.source": student}
    assert _source_option(latents, 4) == {"model.source": latents}
    assert _source_option(student, 4)["model.source"]["init_args"] == {"tokenizer": "x", "layers": 4}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_recipe_on_scenes(task):
    assert (REPOSITORY / f"configs/recipes/scenes_{task}.yaml").is_file()


@pytest.mark.parametrize(("better", "numbers"), [("max", (0.9, 0.8, 0.5)), ("min", (0.1, 0.2, 0.5))])
def test_kept_is_the_share_of_the_teachers_lead(better, numbers):
    problem = Problem("x", "test/x", better, dict(zip(("teacher", "student", "baseline"), numbers, strict=True)))
    assert problem.kept("student") == pytest.approx(0.75)
    assert problem.kept("teacher") == 1
    assert problem.kept("baseline") == 0
    assert problem.kept("latents") is None


def test_without_a_lead_nothing_can_be_kept():
    assert Problem("x", "test/x", "max", {"teacher": 0.4, "student": 0.6, "baseline": 0.5}).kept("student") is None


def test_a_failed_run_and_a_nan_are_shown_as_such():
    problem = Problem("boxes", "test/map", "max", {"teacher": math.nan, "baseline": 0.0}, {"student": "no memory"})
    assert problem.as_json()["teacher"] is None
    assert problem.as_json()["errors"] == {"student": "no memory"}
    (row,) = results_table([problem]).rows
    assert "failed" in row
    assert "nan" in row


def test_the_page_shows_shared_rows_once():
    rows = {name: torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8) for name in ("image", "a", "b")}
    pictures = {s: {"image": rows["image"], "prediction": rows[p]} for s, p in (("teacher", "a"), ("student", "b"))}
    page = write_page([Problem("masks", "test/miou", "max", {"teacher": 0.5}, pictures=pictures)], "uniflow understand")
    captions = [part.split("<")[0] for part in page.split("<figcaption>")[1:]]
    assert captions == ["image", "teacher: prediction", "student: prediction"]
