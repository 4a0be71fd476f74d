"""Every YAML under configs/ is found by glob, says what it is, parses, and, if it is a recipe, trains and tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_fixtures import REPOSITORY, tiny_options, tiny_source

CONFIGS = REPOSITORY / "configs"
# Folder of component files -> the slot that takes them.
SLOTS = {
    "encoders": "model.encoder",
    "bottlenecks": "model.bottleneck",
    "decoders": "model.decoder",
    "weightings": "model.weighting",
    "generators": "model.generator",
    "data": "data",
}
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


@pytest.mark.parametrize("file", COMPONENTS, ids=name)
def test_component_parses_in_its_slot(resolve: Resolve, file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    assert set(content) <= {"class_path", "init_args"}
    option = SLOTS[file.parent.name]
    needed = {"model.encoder": "SceneViT", "data": "Scenes"}
    needed.pop(option, None)
    task = ["GenerationTask", "--model.tokenizer", "embedded"] if option == "model.generator" else ["TokenizerTask"]
    if task[0] == "GenerationTask":
        needed.pop("model.encoder")
    options = ["--model", *task, *(word for k, v in needed.items() for word in (f"--{k}", v))]
    node: Any = resolve(*options, f"--{option}", str(file))
    for part in option.split("."):
        node = node["init_args"][part] if "class_path" in node else node[part]
    assert content["class_path"].rpartition(".")[2] == node["class_path"].rpartition(".")[2]
    for key, value in content.get("init_args", {}).items():
        if not isinstance(value, dict):  # a nested part gains its defaults
            assert node["init_args"][key] == value


# Encoders of recipes/imagenet.yaml: what its header names -> the options, and what they change.
IMAGENET = {
    "OpenAI CLIP-L/14": ("clip_l14_openai", [], (224, 64)),
    "SigLIP2-so400m/14": ("siglip2_so400m", [], (224, 64)),
    "InternViT-300M/14": ("internvit_300m", ["--data.size", "448", "--data.batch_size", "16"], (448, 16)),
}


@pytest.mark.parametrize("encoder", IMAGENET)
def test_encoders_on_imagenet(resolve: Resolve, encoder: str) -> None:
    """The options that the recipe's header names change the encoder and, at 448 px, two numbers of the data."""
    recipe = CONFIGS / "recipes" / "imagenet.yaml"
    file, options, (size, batch_size) = IMAGENET[encoder]
    line = " ".join(["--model.encoder", f"configs/encoders/{file}.yaml", *options])
    assert encoder in recipe.read_text()
    assert line in recipe.read_text()
    plain = resolve("-c", str(recipe))
    config = resolve("-c", str(recipe), "--model.encoder", str(CONFIGS / "encoders" / f"{file}.yaml"), *options)
    assert config["model"]["init_args"].pop("encoder") != plain["model"]["init_args"].pop("encoder")
    arguments = config["data"]["init_args"]
    assert (arguments["size"], arguments["batch_size"]) == (size, batch_size)
    plain["data"]["init_args"] |= {"size": size, "batch_size": batch_size}
    assert config == plain


def kind(file: Path) -> str:
    """What a recipe trains: its task with its heads and generator, and its data."""
    content = yaml.safe_load(file.read_text())
    given = content["model"].get("init_args", {})
    parts = [content["model"], content["data"], given.get("generator"), *(given.get("heads") or [])]
    return str([part.get("class_path") if isinstance(part, dict) else part for part in parts])


# Of each kind of recipe the first is tested, too: a test reads what the recipe trains, whatever trained it.
TESTED = {kind(file): file for file in reversed(RECIPES)}.values()


@pytest.fixture
def train_and_test(
    project: Path, resolve: Resolve, uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`uniflow fit` and, if `tested`, `uniflow test` of these options at tiny size, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*options: str, tested: bool = True) -> None:
        config = resolve(*options)
        tiny = [*tiny_options(config), *tiny_source(config, project)]
        result = uniflow("fit", *options, *tiny, "--run", "runs/tiny")
        assert result.code == 0, result.err
        if tested:
            result = uniflow("test", "-c", "runs/tiny/config.yaml", "--ckpt_path", "last")
            assert result.code == 0, result.err
            assert (project / "runs/tiny/test_results.json").is_file()

    return call


@pytest.mark.parametrize("file", [file for file in COMPONENTS if file.parent.name == "data"], ids=name)
def test_data_component_trains_and_tests(train_and_test: Callable[..., None], file: Path) -> None:
    train_and_test("-c", "recipe.yaml", "--data", str(file))


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_recipe_trains_and_tests(train_and_test: Callable[..., None], file: Path) -> None:
    train_and_test("-c", str(file), tested=file in TESTED)
