"""Swapping a class leaves nothing behind of the class before."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from cli_fixtures import plain
from jsonargparse import _typehints
from slots import SLOTS, slot_parser

from uniflow.cli.parser import Parser
from uniflow.cli.supported import REQUIREMENT, SUPPORTED
from uniflow.tasks import TokenizerTask

CONFIGS = Path(__file__).parents[2] / "configs"
Resolve = Callable[..., dict[str, Any]]
RECIPE = ("-c", "recipe.yaml")


COMPONENTS = [file for folder in SLOTS for file in sorted((CONFIGS / folder).glob("*.yaml"))]


def slot(config: dict[str, Any], option: str) -> Any:
    node: Any = config
    for name in option.removeprefix("--").split("."):
        node = node.get("init_args", node)[name] if "class_path" in node else node[name]
    return node


def number_of_arguments(item: tuple[Path, dict[str, Any]]) -> int:
    return len(item[1].get("init_args", {}))


@pytest.mark.parametrize("b", COMPONENTS, ids=lambda b: f"{b.parent.name}-{b.stem}")
def test_every_pair_of_component_files(fit_parser: Any, b: Path) -> None:
    """resolve(A then B) == resolve(B): every other file A of B's class, and the fullest of each other class."""
    given = yaml.safe_load(b.read_text())
    parser = slot_parser(b.parent.name)
    fresh = plain(parser.parse_args(["--slot", str(b)]))
    assert fresh["slot"]["class_path"].endswith(given["class_path"].rpartition(".")[2])
    assert fresh["slot"].get("init_args", {}).keys() >= given.get("init_args", {}).keys()
    contents = {file: yaml.safe_load(file.read_text()) for file in sorted(b.parent.glob("*.yaml"))}
    fullest = {content["class_path"]: file for file, content in sorted(contents.items(), key=number_of_arguments)}
    for a, content in contents.items():
        if a != b and (content["class_path"] == given["class_path"] or a in fullest.values()):
            assert plain(parser.parse_args(["--slot", str(a), "--slot", str(b)])) == fresh, a.name


WHOLE = [(f"--{option}", folder) for folder, option in SLOTS.items() if folder != "generators"]  # of another task
SLOW_SLOTS = ("--model.bottleneck", "--model.decoder", "--model.weighting", "--model.lr_schedule")  # as --model.encoder


@pytest.mark.parametrize(
    ("option", "folder"),
    [pytest.param(o, f, id=f, marks=[pytest.mark.slow] * (o in SLOW_SLOTS)) for o, f in WHOLE],
)
def test_neighbours_in_the_whole_command(project: Path, resolve: Resolve, option: str, folder: str) -> None:
    """The same with the parser of `uniflow fit`, for two files of the folder."""
    files = sorted((CONFIGS / folder).glob("*.yaml"))
    others = ["--model", "TokenizerTask", *required(option)]
    assert len(files) > 1
    a, b = files[-1], files[0]
    assert resolve(*others, option, str(a), option, str(b)) == resolve(*others, option, str(b)), (a.name, b.name)


def required(option: str) -> list[str]:
    """The required slots besides `option`."""
    options = {"--model.encoder": ["--model.encoder", "SceneViT"], "--data": ["--data", "Scenes"]}
    return [word for name, words in options.items() if name != option for word in words]


SHARED = [
    # option, class that the recipe has or that is given first, its arguments, the other class
    ("--model.encoder", "SceneViT", {"embed_dim": 24, "depth": 3}, "my_pkg.OtherViT"),
    ("--model.decoder", "PatchFlowDecoder", {"width": 48, "num_heads": 3}, "my_pkg.MyDecoder"),
    ("--model.weighting", "Adaptive", {"beta": 9.0}, "my_pkg.OtherWeighting"),
    ("--model.optimizer", "torch.optim.AdamW", {"lr": 0.125, "weight_decay": 0.5}, "torch.optim.SGD"),
    ("--model.lr_schedule", "Linear", {"start": 0.25}, "uniflow.training.CosineSchedule"),
    ("--data", "Scenes", {"batch_size": 5, "size": 48}, "my_pkg.OtherScenes"),
    ("--checkpoint", "LastCheckpoint", {"every_n_epochs": 3, "save_weights_only": True}, "my_pkg.OtherCheckpoint"),
]


@pytest.mark.parametrize(
    ("option", "a", "arguments", "b"),
    [pytest.param(*r, id=r[0][2:], marks=[pytest.mark.slow] * (r[0] in SLOW_SLOTS)) for r in SHARED],
)
def test_shared_arguments_go(
    project: Path, resolve: Resolve, option: str, a: str, arguments: dict[str, Any], b: str
) -> None:
    """The arguments that both classes take go too: by option, and by a later config file."""
    given = [word for name, value in arguments.items() for word in (f"{option}.{name}", str(value))]
    fresh = slot(resolve(*RECIPE, option, b), option)
    assert slot(resolve(*RECIPE, option, a, *given), option)["init_args"].items() >= arguments.items()
    assert slot(resolve(*RECIPE, option, a, *given, option, b), option) == fresh

    def config(name: str, spec: dict[str, Any]) -> str:
        for key in reversed(option.removeprefix("--").split(".")):
            spec = {key: spec}
        if "model" in spec:
            spec["model"] = {"class_path": "TokenizerTask", "init_args": spec["model"]}
        (project / name).write_text(yaml.safe_dump(spec))
        return name

    first = config("a.yaml", {"class_path": a, "init_args": arguments})
    second = config("b.yaml", {"class_path": b})
    assert slot(resolve(*RECIPE, "-c", first, "-c", second), option) == fresh


def test_callbacks_in_a_list(project: Path, resolve: Resolve) -> None:
    (project / "a.yaml").write_text("trainer: {callbacks: [{class_path: my_pkg.Witness, init_args: {name: a}}]}")
    (project / "b.yaml").write_text("trainer: {callbacks: [{class_path: my_pkg.OtherWitness}]}")
    config = resolve(*RECIPE, "-c", "a.yaml", "-c", "b.yaml")
    assert config["trainer"]["callbacks"] == [{"class_path": "my_pkg.OtherWitness", "init_args": {"name": "witness"}}]


def test_data_module_and_its_arguments(project: Path, resolve: Resolve) -> None:
    """Another data module by option, with its arguments after it."""
    config = resolve(*RECIPE, "--data", "my_pkg.OtherScenes", "--data.batch_size", "3")
    assert config["data"]["init_args"]["batch_size"] == 3
    assert config["data"]["init_args"]["size"] == 64


@pytest.fixture
def components(project: Path) -> Path:
    (project / "a.yaml").write_text("class_path: SceneViT\ninit_args: {depth: 7, num_heads: 4}\n")
    (project / "b.yaml").write_text("class_path: SceneViT\ninit_args: {embed_dim: 24, num_heads: 3}\n")
    return project


def test_file_of_the_same_class_starts_afresh(components: Path, resolve: Resolve) -> None:
    fresh = slot(resolve(*RECIPE, "--model.encoder", "my_pkg.OtherViT", "--model.encoder", "b.yaml"), "--model.encoder")
    assert fresh["init_args"]["depth"] == 6  # SceneViT's own
    for options in (
        ["--model.encoder", "b.yaml"],
        ["--model.encoder", "a.yaml", "--model.encoder", "b.yaml"],
        ["--model.encoder.depth", "5", "--model.encoder", "b.yaml"],
    ):
        assert slot(resolve(*RECIPE, *options), "--model.encoder") == fresh
    (components / "more.yaml").write_text("model: {encoder: b.yaml}")
    assert slot(resolve(*RECIPE, "-c", "more.yaml"), "--model.encoder") == fresh


def test_component_is_found_from_its_config_file(components: Path, resolve: Resolve) -> None:
    """A path in a file is seen from that file, not from the current directory."""
    fresh = slot(resolve(*RECIPE, "--model.encoder", "b.yaml"), "--model.encoder")
    (components / "elsewhere" / "parts").mkdir(parents=True)
    (components / "b.yaml").rename(components / "elsewhere" / "parts" / "mine.yaml")
    (components / "elsewhere" / "more.yaml").write_text("model: {encoder: parts/mine.yaml}")
    assert slot(resolve(*RECIPE, "-c", "elsewhere/more.yaml"), "--model.encoder") == fresh


def test_data_is_found_from_its_config_file(project: Path, resolve: Resolve, uniflow: Callable[..., Any]) -> None:
    """`data: ../data/x.yaml` in a recipe; the saved config.yaml has the content, not the path."""
    (project / "elsewhere" / "data").mkdir(parents=True)
    (project / "elsewhere" / "recipes").mkdir()
    scenes = {"size": 32, "train_length": 24, "val_length": 6, "batch_size": 6, "num_workers": 0}
    (project / "elsewhere/data/mine.yaml").write_text(yaml.safe_dump({"class_path": "Scenes", "init_args": scenes}))
    (project / "elsewhere/recipes/more.yaml").write_text("data: ../data/mine.yaml")
    options = (*RECIPE, "-c", "elsewhere/recipes/more.yaml", "--data.batch_size", "3")
    data = resolve(*options)["data"]
    assert data["class_path"] == "uniflow.data.Scenes"
    assert data["init_args"].items() >= (scenes | {"batch_size": 3}).items()
    result = uniflow("fit", *options, "--run", "runs/a", "--trainer.fast_dev_run", "false")
    assert result.code == 0, result.err
    saved = yaml.safe_load((project / "runs/a/config.yaml").read_text())
    assert saved["data"] == data


def test_same_class_and_arguments_alone_keep_the_rest(components: Path, resolve: Resolve) -> None:
    by_name = slot(resolve(*RECIPE, "--model.encoder", "SceneViT", "--model.encoder.depth", "4"), "--model.encoder")
    assert by_name["init_args"]["depth"] == 4
    assert by_name["init_args"]["embed_dim"] == 16
    (components / "more.yaml").write_text("model: {encoder: {depth: 4}}")
    assert slot(resolve(*RECIPE, "-c", "more.yaml"), "--model.encoder") == by_name


def test_argument_after_a_file_after_another(components: Path, resolve: Resolve) -> None:
    """jsonargparse took this for a config file that loads itself."""
    options = ["--model.encoder", "a.yaml", "--model.encoder", "b.yaml", "--model.encoder.depth", "3"]
    encoder = slot(resolve(*RECIPE, *options), "--model.encoder")["init_args"]
    assert (encoder["depth"], encoder["embed_dim"], encoder["num_heads"]) == (3, 24, 3)
    (components / "more.yaml").write_text("model: {encoder: a.yaml}")
    encoder = slot(resolve(*RECIPE, "-c", "more.yaml", *options[2:]), "--model.encoder")["init_args"]
    assert (encoder["depth"], encoder["embed_dim"], encoder["num_heads"]) == (3, 24, 3)
    encoder = slot(resolve(*RECIPE, "-c", "more.yaml", "--model.encoder.depth", "3"), "--model.encoder")["init_args"]
    assert (encoder["depth"], encoder["embed_dim"], encoder["num_heads"]) == (3, 128, 4)


def test_number_in_place_of_a_schedule(project: Path, resolve: Resolve) -> None:
    options = ["--model.distillation_weight", "Linear", "--model.distillation_weight.start", "3"]
    assert slot(resolve(*RECIPE, *options), "--model.distillation_weight")["init_args"]["start"] == 3
    assert slot(resolve(*RECIPE, *options, "--model.distillation_weight", "0.5"), "--model.distillation_weight") == 0.5


@pytest.mark.parametrize("word", ["null", "~"])
def test_null_stays_null(project: Path, resolve: Resolve, word: str) -> None:
    options = ["--model.encoder.weights", "pretrained", "--model.encoder.weights", word]
    assert slot(resolve(*RECIPE, *options), "--model.encoder")["init_args"]["weights"] is None


def test_values_two_levels_down(project: Path, resolve: Resolve) -> None:
    """A mapping, a list and a number keep their types on the way."""
    config = resolve(*RECIPE, "--model.weighting.beta", "{class_path: Linear, init_args: {start: 0.5, end: 2}}")
    assert slot(config, "--model.weighting")["init_args"]["beta"]["init_args"] == {"start": 0.5, "end": 2.0}
    config = resolve(*RECIPE, "--model.weighting.beta", "Linear", "--model.weighting.beta.end", "1e-3")
    assert slot(config, "--model.weighting")["init_args"]["beta"]["init_args"]["end"] == 1e-3
    config = resolve(*RECIPE, "--model.decoder.pixel_mean", "[0.25, 0.5, 0.75]")
    assert slot(config, "--model.decoder")["init_args"]["pixel_mean"] == [0.25, 0.5, 0.75]


def test_what_is_replaced_in_jsonargparse_exists() -> None:
    """The doors of jsonargparse that `uniflow.cli.swap` goes through; if one moves, swaps would keep old arguments."""
    from uniflow.cli import swap

    swap.install()
    assert _typehints.discard_init_args_on_class_path_change is swap._discard
    assert _typehints.ActionTypeHint.__call__ is swap._call
    assert _typehints.ActionTypeHint._check_type is swap._check_type
    assert _typehints.parse_value_or_config is swap._parse_value
    assert _typehints.resolve_class_path_by_name is swap._resolve


def test_old_short_names(project: Path, fit_parser: Any, resolve: Resolve) -> None:
    """By option and in a config file; an old name is never preferred to a class that has it."""
    types = get_type_hints(TokenizerTask.__init__)
    renamed = {
        "weighting": [("Uniform", "UniformWeighting")],
        "distillation_weight": [("Linear", "LinearSchedule"), ("Cosine", "CosineSchedule")],
    }
    for name, pairs in renamed.items():
        parser = Parser()
        parser.add_argument("--slot", type=types[name])
        for old, new in pairs:
            by_option = plain(parser.parse_args(["--slot", old]))
            assert by_option["slot"]["class_path"].endswith(f".{new}")
            assert by_option == plain(parser.parse_args(["--slot", new]))
    (project / "old.yaml").write_text("model: {weighting: {class_path: Uniform}}")
    in_a_file = resolve(*RECIPE, "-c", "old.yaml", "--model.distillation_weight", "Linear")
    assert slot(in_a_file, "--model.weighting")["class_path"].endswith(".UniformWeighting")
    assert slot(in_a_file, "--model.distillation_weight")["class_path"].endswith(".LinearSchedule")


def test_another_jsonargparse_is_refused(uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsonargparse.__version__", "4.54.1")
    expected = (
        "jsonargparse 4.54.1 is installed, uniflow needs 4.53: pip install 'jsonargparse[signatures]>=4.53,<4.54'"
    )
    for command in ("fit", "plan"):
        assert uniflow(command, *RECIPE).error == expected


def test_other_signatures_are_refused(uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniflow.cli.swap._FOUND", {})
    assert "uniflow needs 4.53: pip install" in uniflow("fit", *RECIPE).error


def test_the_installed_version_and_the_pin() -> None:
    assert version("jsonargparse").startswith(f"{SUPPORTED}.")
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]
    assert REQUIREMENT in project["dependencies"]
