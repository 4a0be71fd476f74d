"""A task that is one file of a user's own: trained by YAML, monitored, checkpointed, reported and planned."""

import json
from pathlib import Path

import pytest
import torch
import yaml

TOY = Path(__file__).parents[1] / "third_party" / "third_party_example" / "task.py"
RECIPE = """
model:
  class_path: third_party_example.MeanColorTask
  init_args:
    source:
      class_path: EncoderSource
      init_args: {encoder: {class_path: SceneViT}, layers: 2}
    heads: [{class_path: third_party_example.MeanColorHead}]
    optimizer: {class_path: FusedAdamW, init_args: {lr: 1.0e-2}}
data:
  class_path: Scenes
  init_args: {size: 32, train_length: 32, val_length: 8, test_length: 8, batch_size: 8, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 4, log_every_n_steps: 1, enable_progress_bar: false}
ema: null
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(TOY.parents[1])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_the_page_shows_this_very_file():
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    assert TOY.read_text() in page


def test_the_recipe_of_the_page_trains(uniflow, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    (tmp_path / "recipe.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    options = ["--trainer.max_steps", "2", "--data.train_length", "8", "--data.batch_size", "4"]
    options += ["--trainer.limit_val_batches", "1"]
    result = uniflow("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"), *options)
    assert result.code == 0, result.err


def test_the_task_is_one_short_file():
    assert len(TOY.read_text().splitlines()) <= 60


def test_it_is_trained_by_yaml_resumed_monitored_checkpointed_and_reported(recipe, uniflow, tmp_path):
    run = tmp_path / "run"
    assert uniflow("fit", "-c", str(recipe), "--run", str(run), "--trainer.max_epochs", "2").code == 0
    assert uniflow("fit", "-c", str(recipe), "--run", str(run), "--ckpt_path", "last").code == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 16  # of 4 epochs
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in run.iterdir()}
    assert not (run / "tokenizer").exists()
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"] == "third_party_example.MeanColorTask"
    )
    first = uniflow("test", "-c", str(run / "config.yaml"), "--run", str(run))  # as built
    untrained = json.loads((run / "test_results.json").read_text())["test/mean_color_rmse"]
    last = uniflow("test", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "best")
    assert first.code == last.code == 0
    results = json.loads((run / "test_results.json").read_text())
    assert results["test/mean_color_rmse"] < 0.7 * untrained
    assert 0 <= results["test/probe"] <= 1
    report = tmp_path / "report"
    assert uniflow("report", str(run), "--out", str(report)).code == 0
    assert "mean_color_rmse" in (report / "results.csv").read_text()


def test_it_is_planned(recipe, uniflow, tmp_path):
    out = tmp_path / "plan.json"
    result = uniflow("plan", "-c", str(recipe), "--json", str(out))
    assert result.code == 0, result.err
    plan = json.loads(out.read_text())
    names = {part["name"]: part for part in plan["parts"]}
    assert set(names) == {"source", "mean_color"}
    assert names["source"]["trained"] == 0
    assert names["source"]["forward_gflop"] == names["source"]["training_gflop"] > 0
    assert names["mean_color"]["trained"] > 0


def test_more_classes_than_the_head_has_are_refused_before_training(uniflow, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    recipe = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(recipe.replace("num_classes: 12", "num_classes: 3"))
    result = uniflow("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"))
    assert result.error == "the data has 12 classes, LabelHead.num_classes is 3"
