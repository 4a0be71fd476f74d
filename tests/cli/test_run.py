"""A run lives in one folder, and its saved configuration is all that a later command needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from uniflow.cli.progress import LogProgress

Uniflow = Callable[..., Any]
FIT = ("fit", "-c", "recipe.yaml", "--run", "runs/a")


def fit(uniflow: Uniflow, *options: str) -> Path:
    result = uniflow(*FIT, *options)
    assert result.code == 0, result.err
    return Path("runs/a")


def names(folder: Path) -> set[str]:
    return {"events" if p.name.startswith("events.") else p.name for p in folder.iterdir()}


def test_layout(fitted_once: Path) -> None:
    run, project = fitted_once, fitted_once.parents[1]
    assert {"config.yaml", "last.ckpt", "best.ckpt", "events", "tokenizer"} <= names(run)
    assert "hparams.yaml" not in names(run)
    assert not {"lightning_logs", "checkpoints", "config.yaml"} & names(project)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 2


def test_default_folder_is_named_by_the_time_without_logger_too(uniflow: Uniflow, project: Path) -> None:
    assert uniflow("fit", "-c", "recipe.yaml", "--trainer.logger", "false").code == 0
    (run,) = (project / "runs").iterdir()
    assert re.match(r"20\d\d", run.name)
    assert {"config.yaml", "last.ckpt", "best.ckpt"} <= names(run)
    assert "events" not in names(run)
    assert not {"lightning_logs", "checkpoints", "config.yaml"} & names(project)


def test_fast_dev_run_leaves_nothing(uniflow: Uniflow, project: Path) -> None:
    before = names(project)
    assert uniflow(*FIT, "--trainer.fast_dev_run", "true").code == 0
    assert names(project) - before <= {"runs", "__pycache__"}
    assert not (project / "runs/a/config.yaml").exists()


def test_evaluate_from_the_saved_config(uniflow: Uniflow, fitted: Path) -> None:
    run = fitted
    before = (run / "config.yaml").read_text()
    for command in ("validate", "test", "predict"):
        result = uniflow(command, "-c", f"{run}/config.yaml", "--ckpt_path", f"{run}/last.ckpt")
        assert result.code == 0, result.err
    assert (run / "config.yaml").read_text() == before
    assert "test/psnr" in json.loads((run / "test_results.json").read_text())
    assert not Path("runs").joinpath("lightning_logs").exists()


def test_no_overwriting_and_resuming(uniflow: Uniflow, fitted: Path) -> None:
    """The command line's settings win over the checkpoint's."""
    run = fitted
    line = uniflow(*FIT).error
    assert "--ckpt_path runs/a/last.ckpt" in line
    assert "--run" in line
    options = ("--ckpt_path", "last", "--trainer.max_steps", "4", "--model.reconstruction_weight", "0.125")
    result = uniflow(*FIT, *options)
    assert result.code == 0, result.err
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["ckpt_path"] is None
    assert saved["model"]["init_args"]["reconstruction_weight"] == 0.125


def test_checkpoint_of_another_model(uniflow: Uniflow, fitted: Path) -> None:
    line = uniflow(*FIT, "--ckpt_path", "last", "--model.decoder.width", "64").error
    assert "the checkpoint does not fit the model" in line
    assert "tokenizer.decoder" in line


def test_config_round_trip(uniflow: Uniflow, fitted: Path) -> None:
    printed = uniflow(*FIT, "--print_config")
    assert printed.code == 0
    assert yaml.safe_load(printed.out)["seed_everything"] == 0
    Path("printed.yaml").write_text(printed.out)
    assert uniflow("fit", "-c", "printed.yaml", "--print_config").out == printed.out
    saved = yaml.safe_load((fitted / "config.yaml").read_text())
    again = yaml.safe_load(uniflow("fit", "-c", f"{fitted}/config.yaml", "--print_config").out)
    assert again == saved
    assert saved["run"] == "runs/a"
    assert saved["model"]["init_args"]["decoder"]["init_args"]["width"] == 32


def test_callbacks_are_configured_and_dropped(uniflow: Uniflow) -> None:
    options = ("--best_checkpoint", "null", "--ema.decay", "0.5", "--images", "null", "--export", "null")
    run = fit(uniflow, *options)
    assert not {"best.ckpt", "images", "tokenizer"} & names(run)
    assert "last.ckpt" in names(run)
    assert yaml.safe_load((run / "config.yaml").read_text())["ema"]["init_args"]["decay"] == 0.5


def test_own_callbacks_join_the_others(uniflow: Uniflow, project: Path) -> None:
    (project / "more.yaml").write_text("trainer: {callbacks: [{class_path: my_pkg.Witness}]}")
    run = fit(uniflow, "-c", "more.yaml")
    assert (project / "witness").exists()
    assert {"last.ckpt", "best.ckpt"} <= names(run)


def test_checkpointing_switched_off(uniflow: Uniflow) -> None:
    run = fit(uniflow, "--trainer.enable_checkpointing", "false")
    assert not {"last.ckpt", "best.ckpt"} & names(run)


def test_training_that_ends_between_two_validations(uniflow: Uniflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint holds the last step, the best one the best, and a log file shows every step if asked."""
    monkeypatch.setattr(LogProgress, "SECONDS", 0.0)  # also between validations, which come every two steps
    best = ("--best_checkpoint.monitor", "step", "--best_checkpoint.mode", "min")
    out = uniflow(*FIT, "--trainer.max_steps", "5", *best).out
    assert torch.load("runs/a/last.ckpt", weights_only=True)["global_step"] == 5
    assert torch.load("runs/a/best.ckpt", weights_only=True)["global_step"] == 2
    assert [f"step {n}/5" in out for n in range(1, 6)] == [True] * 5


def test_run_folder_has_one_name(uniflow: Uniflow) -> None:
    assert "--run" in uniflow(*FIT, "--trainer.default_root_dir", "elsewhere").error


def test_several_processes_need_a_name(uniflow: Uniflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--run NAME" in uniflow("fit", "-c", "recipe.yaml").error


def test_progress_in_a_log_file(uniflow: Uniflow) -> None:
    out = uniflow(*FIT).out
    assert "step 2/2" in out
    assert "train/loss" in out
    assert "step 1/2" not in out
