"""What is installed works outside a clone: the wheel brings recipes and component files along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import REPOSITORY

from uniflow.cli import shipped
from uniflow.cli.errors import UserError

Uniflow = Callable[..., Any]
# From an empty folder, as README.md and docs/cli.md show them.
COMMANDS = (
    "fit -c quickstart --print_config",
    "fit -c recipes/real --print_config",
    "fit -c configs/quickstart.yaml --model.encoder configs/encoders/dinov2_l14.yaml --data.size 224 --print_config",
    "fit -c quickstart --model.encoder dinov2_l14 --data scenes --print_config",
    "ablate configs/ablations/weightings.yaml --dry_run",
    "quickstart --help",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_all_configurations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = REPOSITORY / "configs"
    files = {f"uniflow/configs/{path.relative_to(configs).as_posix()}" for path in configs.rglob("*.yaml")}
    assert len(files) > 40
    assert files <= names


@pytest.mark.slow
def test_commands_outside_a_clone(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for command in COMMANDS:
        words = [sys.executable, "-P", "-m", "uniflow.cli", *command.split()]
        done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    where = [sys.executable, "-P", "-c", "from uniflow.cli.shipped import root; print(root())"]
    done = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(site / "uniflow" / "configs")


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("quickstart", "recipe", "quickstart.yaml"),
        ("recipes/real", "recipe", "recipes/real.yaml"),
        ("real", "recipe", "recipes/real.yaml"),
        ("configs/recipes/real.yaml", "recipe", "recipes/real.yaml"),
        ("weightings", "ablation", "ablations/weightings.yaml"),
        ("configs/data/scenes.yaml", "component", "data/scenes.yaml"),
    ],
)
def test_names(name: str, kind: Any, file: str) -> None:
    assert shipped.find(name, kind) == shipped.root() / file


def test_a_file_here_comes_first(project: Path) -> None:
    assert shipped.find_file("recipe.yaml", "recipe") == Path("recipe.yaml")
    Path("quickstart").write_text("{}")
    assert shipped.find_file("quickstart", "recipe") == Path("quickstart")


def test_a_stem_means_a_file_of_the_slot_only() -> None:
    found = shipped.find_component("dinov2_l14", "--model.encoder")
    assert found is not None
    assert found.name == "dinov2_l14.yaml"
    assert shipped.find_component("dinov2_l14", "model.decoder") is None
    assert shipped.find_component("vit", "--data.name") is None


def test_ambiguous_name(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/same": Path("a/same.yaml"), "b/same": Path("b/same.yaml")}
    monkeypatch.setattr(shipped, "shipped", lambda kind: files)
    with pytest.raises(UserError, match="'same' may be one of a/same, b/same"):
        shipped.find("same", "recipe")


def test_unknown_names_say_what_is_near(uniflow: Uniflow) -> None:
    assert "did you mean quickstart?" in uniflow("fit", "-c", "quikstart").error
    line = uniflow("fit", "-c", "quickstart", "--model.encoder", "dinov2_l41").error
    assert "did you mean dinov2_l14?" in line
    line = uniflow("fit", "-c", "quickstart", "--model.encoder", "configs/encoders/dinov2_l41.yaml").error
    assert "did you mean encoders/dinov2_l14?" in line


def test_a_recipe_may_name_shipped_components(resolve: Callable[..., Any], project: Path) -> None:
    Path("mine.yaml").write_text("model: {class_path: TokenizerTask, init_args: {encoder: dinov2_l14}}")
    config = resolve("-c", "recipe.yaml", "-c", "mine.yaml", "--data", "scenes")
    assert config["model"]["init_args"]["encoder"]["class_path"].endswith("DINOv2")
    assert config["data"]["class_path"].endswith("Scenes")
