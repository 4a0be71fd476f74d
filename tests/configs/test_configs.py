"""Every YAML under configs/ is found by glob, says what it is, parses, and, if it is a recipe, trains and tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_fixtures import REPOSITORY, plain, tiny_options, tiny_source
from slots import SLOTS, slot_parser

from uniflow.cli.app import UniflowCLI
from uniflow.core.yaml_files import ConfigLoader
from uniflow.evaluation.probing import CLASSIFIERS
from uniflow.metrics import linear_probe

CONFIGS = REPOSITORY / "configs"
FILES = sorted(CONFIGS.rglob("*.y*ml"))
COMPONENTS = [file for file in FILES if file.parent.name in SLOTS]
RECIPES = [file for file in FILES if file.parent in (CONFIGS, CONFIGS / "recipes")]
ABLATIONS = [file for file in FILES if file.parent == CONFIGS / "ablations"]  # run by tests/ablation
Resolve = Callable[..., dict[str, Any]]


def name(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def test_every_file_is_of_a_known_kind() -> None:
    assert FILES
    assert sorted(COMPONENTS + RECIPES + ABLATIONS) == FILES


@pytest.mark.parametrize("file", FILES, ids=name)
def test_header(file: Path) -> None:
    """What it is, where it comes from, how it is run, and what came out."""
    header = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    text = "\n".join(header)
    assert header[0]
    assert "Source:" in text
    assert "Result:" in text
    assert "Hardware:" in text or file in COMPONENTS
    (command,) = [line.partition(": ")[2] for line in header if line.startswith(("Command:", "Use:"))]
    assert command.startswith(("uniflow ", "make "))
    if file not in COMPONENTS:
        assert name(file) in command or command.startswith("make ")
    for word in command.split():
        if word.startswith("configs/"):
            assert (REPOSITORY / word).is_file(), f"the header names {word}"


def assert_is(node: dict[str, Any], file: Path) -> None:
    """`node` is what the component file says."""
    content = yaml.safe_load(file.read_text())
    assert content["class_path"].rpartition(".")[2] == node["class_path"].rpartition(".")[2]
    for key, value in content.get("init_args", {}).items():
        if not isinstance(value, dict):  # a nested part gains its defaults
            assert node["init_args"][key] == value


@pytest.mark.parametrize("file", COMPONENTS, ids=name)
def test_component_parses_in_its_slot(fit_parser: Any, file: Path) -> None:
    """The whole command is parsed by tests/cli/test_swap.py for some files of each slot, and below."""
    assert set(yaml.safe_load(file.read_text())) <= {"class_path", "init_args"}
    assert_is(plain(slot_parser(file.parent.name).parse_args(["--slot", str(file)]).slot), file)


def test_a_generator_is_named_by_its_file(resolve: Resolve) -> None:
    file = next(file for file in COMPONENTS if file.parent.name == "generators")
    task = ["--model", "GenerationTask", "--model.tokenizer", "embedded", "--data", "Scenes"]
    assert_is(resolve(*task, "--model.generator", str(file))["model"]["init_args"]["generator"], file)


# Encoders of recipes/imagenet.yaml: what its header names -> the options, and what they change.
IMAGENET = {
    "OpenAI CLIP-L/14": ("clip_l14_openai", [], (224, 64)),
    "SigLIP2-so400m/14": ("siglip2_so400m", [], (224, 64)),
    "InternViT-300M/14": ("internvit_300m", ["--data.size", "448", "--data.batch_size", "16"], (448, 16)),
}


def test_encoders_on_imagenet(resolve: Resolve) -> None:
    """The options that the recipe's header names change the encoder and, at 448 px, two numbers of the data."""
    recipe = CONFIGS / "recipes" / "imagenet.yaml"
    unchanged = resolve("-c", str(recipe))
    encoder = unchanged["model"]["init_args"].pop("encoder")
    for label, (file, options, (size, batch_size)) in IMAGENET.items():
        line = " ".join(["--model.encoder", f"configs/encoders/{file}.yaml", *options])
        assert label in recipe.read_text()
        assert line in recipe.read_text()
        config = resolve("-c", str(recipe), "--model.encoder", str(CONFIGS / "encoders" / f"{file}.yaml"), *options)
        assert config["model"]["init_args"].pop("encoder") != encoder
        arguments = config["data"]["init_args"]
        assert (arguments["size"], arguments["batch_size"]) == (size, batch_size)
        unchanged["data"]["init_args"] |= {"size": size, "batch_size": batch_size}
        assert config == unchanged, label


TRAINED = [file for file in COMPONENTS if file.parent.name == "data"] + RECIPES


def parts(file: Path) -> set[str]:
    """Classes whose own code a test runs: task, data module, heads and generator."""
    content = yaml.safe_load(file.read_text())
    if file in COMPONENTS:
        return {"TokenizerTask", content["class_path"], *(["buckets"] if "buckets" in content["init_args"] else [])}
    given = content["model"].get("init_args", {})
    found = [content["model"], content["data"], given.get("generator"), *(given.get("heads") or [])]
    return {part["class_path"] for part in found if isinstance(part, dict)}


def with_a_new_class(files: list[Path]) -> Iterator[Path]:
    """The files that have a class which no file before them has."""
    seen: set[str] = set()
    for file in files:
        if parts(file) - seen:
            yield file
        seen |= parts(file)


# A test reads what the recipe trains, whatever trained it.
TESTED = list(with_a_new_class(TRAINED))
CLASS = re.compile(r"(?!True|False)[A-Z]\w+|\[\{class_path.*")  # an option's value that names a class


@pytest.fixture
def train_and_test(project: Path, uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`uniflow fit` and, for `TESTED`, `uniflow test` of these options at tiny size, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("uniflow.tasks.start.CALIBRATION_IMAGES", 4)
    monkeypatch.setitem(CLASSIFIERS, "probe", partial(linear_probe, iterations=2))

    as_usual = UniflowCLI.parse_arguments

    def parse(cli: UniflowCLI, parser: Any, args: list[str]) -> None:
        """Parses once: tiny values go into what has been parsed, unless they name classes."""
        as_usual(cli, parser, args)
        resolved = plain(cli.config.fit)
        words = [*tiny_options(resolved), *tiny_source(resolved, project)]
        options = dict(zip(words[::2], words[1::2], strict=True))
        if any(CLASS.fullmatch(value) for value in options.values()):
            return as_usual(cli, parser, [*args, *words])
        for option, value in options.items():
            *path, last = option.removeprefix("--").split(".")
            node = cli.config.fit
            for key in path:
                node = node[key].init_args if "class_path" in node[key] else node[key]
            assert last in node, option
            node[last] = yaml.load(value, ConfigLoader)

    def call(file: Path, *options: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(UniflowCLI, "parse_arguments", parse)
            result = uniflow("fit", *options, "--run", "runs/tiny")
        assert result.code == 0, result.err
        assert torch.load("runs/tiny/last.ckpt", weights_only=True)["global_step"] == 2
        if file in TESTED:
            result = uniflow("test", "-c", "runs/tiny/config.yaml", "--ckpt_path", "last")
            assert result.code == 0, result.err
            assert (project / "runs/tiny/test_results.json").is_file()

    return call


@pytest.mark.parametrize("file", TRAINED, ids=name)
def test_it_trains_and_tests(train_and_test: Callable[..., None], file: Path) -> None:
    train_and_test(file, *(["-c", "recipe.yaml", "--data"] if file in COMPONENTS else ["-c"]), str(file))
