"""Hostile and malformed input: each kind gets one short line, exit code 2, and runs nothing that it names."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from uniflow.cli.config_files import moved_run
from uniflow.core.yaml_files import ConfigLoader, StrictLoader, dump_yaml, read_yaml

Uniflow = Callable[..., Any]
RECIPE = ("fit", "-c", "recipe.yaml", "--run", "run")
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "a key twice": ("trainer: {max_steps: 3, max_steps: 4}", "'max_steps' stands twice in one mapping, line 1"),
    "billion laughs": (LAUGHS, "aliases expand to more than"),
    "deep": ("a: " + "{a: " * 500 + "1" + "}" * 500, "levels of nesting"),
    "contains itself": ("trainer: &x {max_steps: *x}", "contains itself"),
    "latin-1": ("# é".encode("latin-1"), "UTF-8"),
    "utf-16": ("trainer: {}".encode("utf-16"), "UTF-8"),
    "null characters": (b"trainer: {}\0", "#x0000"),
    "large": ("# " + "x" * 11 * 2**20, "MB"),
    "long number": ("trainer: {max_steps: " + "9" * 5000 + "}", "too long"),
    "object": ('a: !!python/object/apply:os.system ["touch owned"]', "constructor for the tag"),
    "names itself": ("config: bad.yaml", "loop"),
    "weights_only": ("weights_only: false", "would run code that a checkpoint holds"),
    "function as optimizer": (
        "model: {init_args: {optimizer: {class_path: os.system, init_args: {command: touch owned}}}}",
        "os.system is not a class: Optimizer is expected",
    ),
    "other class as optimizer": (
        "model: {init_args: {optimizer: {class_path: subprocess.Popen, init_args: {args: [touch, owned]}}}}",
        "subprocess.Popen is not a Optimizer",
    ),
    "function of the user": (
        "model: {init_args: {optimizer: {class_path: hostile.make, init_args: {}}}}",
        "hostile.make is not a class",
    ),
    "schedule": ("model: {init_args: {distillation_weight: {class_path: os.system}}}", "os.system is not a Schedule"),
    "callback": ("trainer: {callbacks: [{class_path: os.system}]}", "os.system is not a Callback"),
    "logger": ("trainer: {logger: {class_path: hostile.make}}", "hostile.make is not a Logger"),
    "strategy": ("trainer: {strategy: {class_path: hostile.make}}", "hostile.make is not a Strategy"),
    "plugin": ("trainer: {plugins: {class_path: os.system}}", "os.system is not a"),
}
HOSTILE = """import pathlib, torch
def make(params=None) -> torch.optim.Optimizer:
    pathlib.Path("owned").touch()
    return torch.optim.SGD(params, lr=0.1)
"""


LEAVING = """import sys
from lightning.pytorch import Callback

class Leaving(Callback):
    def on_train_batch_start(self, *args):
        sys.exit(0)
"""


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_recipe(uniflow: Uniflow, project: Path, case: str) -> None:
    content, expected = BAD_FILES[case]
    Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("hostile.py").write_text(HOSTILE)
    result = uniflow(*RECIPE, "-c", "bad.yaml")
    assert expected in result.error
    assert result.code == 2
    assert len(result.error) <= 320
    assert not Path("owned").exists()


@pytest.mark.parametrize("value", ["os.system", "subprocess.Popen", "hostile.make"])
def test_bad_class_on_the_command_line(uniflow: Uniflow, project: Path, value: str) -> None:
    Path("hostile.py").write_text(HOSTILE)
    assert f"{value} is not a" in uniflow(*RECIPE, "--model.optimizer", value).error
    assert not Path("owned").exists()


@pytest.mark.timeout(60)
def test_pipes_do_not_hang(uniflow: Uniflow, project: Path) -> None:
    os.mkfifo("pipe.yaml")
    for options in (["-c", "pipe.yaml"], ["--model.encoder", "pipe.yaml"]):
        assert "named pipe" in uniflow(*RECIPE, *options).error
    assert uniflow("ablate", "pipe.yaml").code == 2


def test_module_that_exits_is_not_success(uniflow: Uniflow, project: Path) -> None:
    Path("exiting.py").write_text("import sys\nsys.exit(0)\n")
    assert "exiting ended the program: sys.exit(0)" in uniflow(*RECIPE, "--model.decoder", "exiting.Some").error
    Path("leaving.py").write_text(LEAVING)
    line = uniflow(*RECIPE, "--trainer.callbacks", "leaving.Leaving").error
    assert "leaving ended the program: sys.exit(0)" in line


OPTIONS = {
    "union": (["--trainer.precision", "12"], "expected one of"),
    "union with a class": (
        ["--model.weighting.beta", "x"],
        "expected a finite number >= 0 or a class such as Schedule, got 'x'",
    ),
    "tuple": (["--data.size", "big"], "expected an integer or [an integer, an integer], got 'big'"),
    "abbreviation": (["--mod", "TokenizerTask"], "no option --mod; did you mean --model?"),
    "run is empty": (["--run", ""], "--run is empty"),
    "checkpoint is empty": (["--ckpt_path", ""], "--ckpt_path is empty"),
    "run is a file": (["--run", "recipe.yaml"], "recipe.yaml is a file, not a folder"),
    "run in a file": (["--run", "recipe.yaml/a"], "recipe.yaml is a file, not a folder"),
    "not UTF-8": (["--run", "a\udcff"], "is not UTF-8"),
    "loads anything": (["--weights_only", "false"], "would run code that a checkpoint holds"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_option(uniflow: Uniflow, case: str) -> None:
    options, expected = OPTIONS[case]
    line = uniflow(*RECIPE, *options).error
    assert expected in line
    assert len(line) <= 320


def test_bad_checkpoints(uniflow: Uniflow, fitted: Path) -> None:
    whole = (fitted / "last.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("hello")
    Path("folder.ckpt").mkdir()
    with zipfile.ZipFile("zip.ckpt", "w") as file:
        file.writestr("a/data.pkl", "hello")
    torch.save({"some": 1}, "other.ckpt")
    os.mkfifo("pipe.ckpt")
    Path("device.ckpt").symlink_to("/dev/null")
    config = str(fitted / "config.yaml")
    (fitted / ".lock").unlink()  # it names the process
    before = {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()}
    # Both restore in the same way.
    for command, names in (("fit", "half text folder zip other pipe device"), ("test", "half")):
        for name in names.split():
            result = uniflow(command, "-c", config, "--ckpt_path", f"{name}.ckpt", "--model.eval_steps", "[2]")
            assert "checkpoint" in result.error, name
            assert result.code == 2
        if command == "fit":
            (fitted / ".lock").unlink()
            assert {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()} == before


def test_state_of_another_optimizer(uniflow: Uniflow, fitted: Path) -> None:
    options = ("--ckpt_path", "last", "--model.optimizer", "torch.optim.SGD", "--trainer.max_steps", "3")
    config = (fitted / "config.yaml").read_text()
    files = sorted(path.name for path in fitted.iterdir())
    line = uniflow("fit", "-c", str(fitted / "config.yaml"), *options).error
    assert "optimizer is torch.optim.SGD" in line
    assert (fitted / "config.yaml").read_text() == config
    assert sorted(path.name for path in fitted.iterdir()) == files


@pytest.mark.parametrize(
    "optimizer",
    ["uniflow.training.Muon", "timm.optim.Lion", pytest.param("torch.optim.SGD", marks=pytest.mark.slow)],
)
def test_a_run_with_any_optimizer_goes_on(uniflow: Uniflow, optimizer: str) -> None:
    options = ("--model.optimizer", optimizer, "--model.optimizer.lr", "0.001", "--trainer.max_steps")
    first = uniflow("fit", "-c", "recipe.yaml", "--run", "other", *options, "1")
    assert first.code == 0, first.err
    resumed = uniflow("fit", "-c", "other/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "2")
    assert resumed.code == 0, resumed.err
    assert torch.load("other/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_copied_run_leaves_the_old_one_alone(uniflow: Uniflow, fitted: Path) -> None:
    shutil.copytree(fitted, "copy")
    before = {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()}
    result = uniflow("fit", "-c", "copy/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3")
    assert result.code == 0, result.err
    assert uniflow("test", "-c", "copy/config.yaml", "--ckpt_path", "last").code == 0
    assert Path("copy/test_results.json").is_file()
    assert {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()} == before
    assert torch.load("copy/last.ckpt", weights_only=True)["global_step"] == 3
    assert read_yaml(Path("copy/config.yaml"))["run"] == "copy"


def test_paths_inside_a_moved_run() -> None:
    text = "run: runs/a\nckpt_path: null\ntrainer: {logger: runs/a/logs, x: runs/ab, y: [runs/a]}\n"
    moved = yaml.load(moved_run(text, Path("runs/b/config.yaml"), Path("/here")), ConfigLoader)
    assert moved == {
        "run": "runs/b", "ckpt_path": None, "trainer": {"logger": "runs/b/logs", "x": "runs/ab", "y": ["runs/b"]}
    }  # fmt: skip
    assert moved_run(text, Path("runs/a/config.yaml"), Path("/here")) == text
    assert moved_run(text, Path("other/recipe.yaml"), Path("/here")) == text
    assert moved_run("run: runs/a\nmodel: {}\n", Path("b/config.yaml"), Path("/here")) == "run: runs/a\nmodel: {}\n"


def test_names_that_look_like_numbers_survive(uniflow: Uniflow, project: Path) -> None:
    result = uniflow("fit", "-c", "recipe.yaml", "--run", "1e-4", "--trainer.max_steps", "1", "--images", "null")
    assert result.code == 0, result.err
    assert read_yaml(Path("1e-4/config.yaml"))["run"] == "1e-4"
    assert uniflow("test", "-c", "1e-4/config.yaml", "--ckpt_path", "last").code == 0


@pytest.mark.parametrize(
    "value", ["1e-4", "1e3", "2020-01-01", "yes", "null", "~", ".inf", "0x1F", "1_000", "a: b", "", " x", "é", "1:30"]
)
def test_text_stays_text(value: str) -> None:
    for flow in (False, True):
        assert yaml.load(dump_yaml({"a": [value]}, flow), ConfigLoader) == {"a": [value]}


def test_numbers_stay_numbers() -> None:
    values = [1e-4, 1e22, float("inf"), 3, True, None, -0.0]
    assert yaml.load(dump_yaml(values, flow=True), ConfigLoader) == values
    assert yaml.load("a: 2020-01-01", ConfigLoader) == {"a": "2020-01-01"}


def test_home(uniflow: Uniflow, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project / "home"))
    assert yaml.load("a: ~/x", StrictLoader) == {"a": str(project / "home/x")}
    assert uniflow("fit", "-c", "recipe.yaml", "--run=~/run", "--trainer.max_steps", "1").code == 0
    assert (project / "home/run/config.yaml").is_file()


def test_images_as_folder_file_or_list(uniflow: Uniflow, project: Path) -> None:
    Path("images").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64), "red" if name == "a" else "blue").save(f"images/{name}.png")
    lists = (["images"], ["images/a.png", "images/b.png"], ["[images/a.png, images/b.png]"])
    for images in lists:
        for command in (("evaluate", "embedded", "--images", *images), ("reconstruct", *images)):
            result = uniflow(*command, "--size", "32", "--out", "out")
            assert result.code == 0, result.err
        assert json.loads(Path("out/results.json").read_text())["protocol/settings"]["num_images"] == 2
    assert uniflow("evaluate", "embedded", "--images", "images/a.png", "--size", "32", "--slices").code == 0


TOOLS = {
    "size": (["evaluate", "embedded", "--images", "a.png", "--size", "-1"], "--size must lie between 1 and"),
    "short side": (["reconstruct", "a.png", "--size", "-1"], "--size must lie between 0 and"),
    "device": (["reconstruct", "a.png", "--device", "cuda"], "no GPU"),
    "steps": (["evaluate", "embedded", "--images", "a.png", "--steps", "1000000000"], "--steps must lie between"),
    "no image": (["evaluate", "embedded", "--images", "a.png"], "not one image can be read"),
    "empty list": (["evaluate", "embedded", "--images", ""], "--images is empty"),
    "empty argument": (["summary", ""], "an argument is empty"),
    "empty folder": (["consolidate", "a.png", ""], "an argument is empty"),
    "empty option": (["reconstruct", "a.png", "--out="], "--out is empty"),
    "results": (["report", "broken"], "broken/test_results.json is not valid JSON"),
    "grid": (["ablate", "grid.yaml", "--dry_run"], "1,000,000 points of the grid are more than 10,000"),
    "seeds": (["ablate", "seeds.yaml", "--dry_run"], "20,000 seeds are more than 10,000"),
}


@pytest.mark.parametrize("case", TOOLS)
def test_tools(uniflow: Uniflow, project: Path, case: str) -> None:
    if case == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    Path("a.png").write_bytes(b"\x89PNG junk")
    Path("broken").mkdir()
    Path("broken/test_results.json").write_text('{"a": ')
    numbers = list(range(1000))
    Path("grid.yaml").write_text(f"base: recipe.yaml\ngrid: {{data.a: {numbers}, data.b: {numbers}}}")
    Path("seeds.yaml").write_text(f"base: recipe.yaml\nseeds: {list(range(20000))}")
    words, expected = TOOLS[case]
    result = uniflow(*words)
    assert expected in result.error
    assert result.code == 2
