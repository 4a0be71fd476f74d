"""Parts of one's own: which modules loading a tokenizer may import, and how a user allows more."""

import sys

import pytest
from torch import nn

from uniflow.core import imports
from uniflow.core.imports import import_part
from uniflow.core.numbers import PositiveInt
from uniflow.core.part import build_part, constructor_arguments
from uniflow.decoders import PixelDecoder
from uniflow.encoders import CLIP, SceneViT, VisionEncoder

MODULE = """
from uniflow.decoders import RegressionDecoder

class Decoder(RegressionDecoder):
    pass
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Decoders in modules that nothing has imported: in the current directory, and in a package that is installed."""
    here, installed = tmp_path / "here", tmp_path / "site-packages"
    for path in (here / "my_parts.py", here / "my_package" / "deep.py", installed / "plugin" / "parts.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODULE)
    (here / "my_package" / "__init__.py").write_text("")
    (installed / "plugin" / "__init__.py").write_text("")
    (installed / "single.py").write_text(MODULE)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), str(installed), *sys.path])
    monkeypatch.setattr(imports, "_site_directories", lambda: [str(installed)])
    monkeypatch.delenv("UNIFLOW_IMPORT", raising=False)
    known = set(sys.modules)
    yield installed
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("my_parts", "my_package", "plugin", "single"):
            del sys.modules[name]


def install(installed, requires, files):
    folder = installed / "plugin-1.0.dist-info"
    folder.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.1", "Name: plugin", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def load(class_path):
    return import_part({"class_path": class_path}, PixelDecoder)


def test_a_module_in_the_current_directory_has_to_be_imported_by_the_user(modules):
    with pytest.raises(ValueError, match="import my_parts yourself first, or set UNIFLOW_IMPORT=my_parts"):
        load("my_parts.Decoder")
    assert "my_parts" not in sys.modules
    import my_parts

    assert load("my_parts.Decoder") is my_parts.Decoder


def test_importing_a_package_does_not_allow_its_other_modules(modules):
    import my_package  # noqa: F401

    with pytest.raises(ValueError, match=r"import my_package\.deep yourself"):
        load("my_package.deep.Decoder")


def test_the_environment_allows_modules(modules, monkeypatch):
    monkeypatch.setenv("UNIFLOW_IMPORT", "my_package, my_parts")
    assert load("my_parts.Decoder").__module__ == "my_parts"
    assert load("my_package.deep.Decoder").__module__ == "my_package.deep"
    monkeypatch.setenv("UNIFLOW_IMPORT", "plug")
    with pytest.raises(ValueError, match="cannot import"):
        load("plugin.parts.Decoder")


@pytest.mark.parametrize("requires", [["uniflow"], ["torch", "uniflow>=0.1"], ['uniflow[vq] ; python_version > "3"']])
def test_an_installed_package_that_depends_on_uniflow_is_imported(modules, requires):
    install(modules, requires, ["plugin/__init__.py", "plugin/parts.py", "single.py"])
    assert load("plugin.parts.Decoder").__module__ == "plugin.parts"
    assert load("single.Decoder").__module__ == "single"


@pytest.mark.parametrize("requires", [[], ["torch"], ["uniflow-tools"], ["not-uniflow"]])
def test_any_other_installed_package_is_not(modules, requires):
    install(modules, requires, ["plugin/__init__.py", "plugin/parts.py"])
    with pytest.raises(ValueError, match="cannot import"):
        load("plugin.parts.Decoder")
    assert "plugin" not in sys.modules


def test_site_directories_do_not_hold_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    directories = imports._site_directories()
    assert any(path.endswith("site-packages") or path.endswith("dist-packages") for path in directories)
    assert str(tmp_path) not in directories


def test_a_decoder_from_the_working_directory_on_the_command_line(uniflow, project, monkeypatch):
    """fit finds it as ever; what loads the result later is told that it may."""
    known = set(sys.modules)
    run = ["fit", "-c", "recipe.yaml", "--run", "runs/a", "--model.decoder", "my_pkg.MyDecoder"]
    assert uniflow(*run).code == 0
    monkeypatch.delitem(sys.modules, "my_pkg")
    monkeypatch.delenv("UNIFLOW_IMPORT", raising=False)
    assert "UNIFLOW_IMPORT=my_pkg" in uniflow("summary", "runs/a/tokenizer").error
    monkeypatch.setenv("UNIFLOW_IMPORT", "my_pkg")
    result = uniflow("summary", "runs/a/tokenizer")
    assert result.code == 0, result.err
    assert "MyDecoder" in result.out
    assert "my_pkg" in set(sys.modules) - known | {"my_pkg"}


class Handing(VisionEncoder):
    """Hands its `**kwargs` on, like the families."""

    def __init__(self, size: int = 3, **kwargs) -> None:
        super().__init__()


def test_arguments_are_found_behind_kwargs():
    assert {"variant", "weights", "tune"} <= constructor_arguments(CLIP).keys()
    assert constructor_arguments(SceneViT)["depth"][0].default == 6
    assert constructor_arguments(SceneViT)["depth"][1] is PositiveInt
    assert "size" in constructor_arguments(Handing)
    assert "weights" not in constructor_arguments(Handing)


class Typed(PixelDecoder):
    """One argument of each kind of type."""

    def __init__(
        self,
        number: int = 4,
        factor: float = 1.0,
        flag: bool = False,
        grid: tuple[int, int] | None = None,
        shares: tuple[float, ...] = (),
        sloppy: int = None,  # type: ignore[assignment]  # noqa: RUF013
        module: nn.Module | None = None,
        anything=None,
    ) -> None:
        super().__init__()

    def loss(self, latents, images):
        return {}

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        return latents


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": 2, "factor": 3, "flag": True, "grid": [1, 2], "shares": [0.5, 1], "anything": {"a": [1]}},
        {"grid": None, "sloppy": None, "module": None, "shares": []},
    ],
)
def test_values_of_the_right_type_pass(arguments):
    built = build_part({"class_path": f"{__name__}.Typed", "init_args": arguments}, PixelDecoder)
    assert built.init_args.items() >= arguments.items()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", 2.0),
        ("number", True),
        ("number", "2"),
        ("factor", "1"),
        ("factor", None),
        ("flag", "yes"),
        ("grid", [1]),
        ("grid", [1, 2.5]),
        ("grid", 3),
        ("shares", [0.5, "x"]),
        ("shares", 0.5),
        ("sloppy", "x"),
    ],
)
def test_values_of_a_wrong_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Typed: {name} must be"):
        build_part({"class_path": f"{__name__}.Typed", "init_args": {name: value}}, PixelDecoder)
