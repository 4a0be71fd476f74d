"""A package of someone else's parts, as docs/extending.md shows it: installed, trained, saved, loaded, listed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cli_fixtures import REPOSITORY, tiny_options
from PIL import Image

from uniflow.cli.app import prepare
from uniflow.cli.errors import UserError
from uniflow.core import imports

HERE = Path(__file__).parent
PACKAGE = "third_party_example"
PAGE = "".join((REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("extending.md", "tasks.md"))
# Slot of the command line -> the class that fills it.
CLASSES = {
    "encoder": "TokenMLP",
    "bottleneck": "ConvBottleneck",
    "decoder": "PlainDecoder",
    "weighting": "FirstLayers",
    "data": "Ramps",
}
LOAD = """
import gc, json, sys
gc.disable()  # it takes a sixth of the time of the imports
import torch
from uniflow import Tokenizer

assert not any(name.startswith("third_party") for name in sys.modules)
tokenizer = Tokenizer.from_pretrained(sys.argv[1])
images = torch.rand(1, 3, 32, 32)
latents = tokenizer.encode(images)
print(json.dumps([[type(p).__name__ for p in tokenizer.parts], latents.shape, tokenizer.decode(latents).shape]))
"""


def install(site: Path) -> None:
    """What pip makes of the package: its files, and metadata from its pyproject.toml."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    shutil.copytree(HERE / PACKAGE, site / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    files = [f"{PACKAGE}/{file.name}" for file in (site / PACKAGE).iterdir()]
    write_metadata(site, project["name"], project["dependencies"], project["entry-points"], files)


def write_metadata(site, name, requires, entry_points, files):
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    groups = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for g, entries in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A user's base directory with the package in it."""
    base = tmp_path_factory.mktemp("base")
    install(base / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages")
    return base


@pytest.fixture
def site(installed, monkeypatch):
    """Its site directory, for this process and those that it starts."""
    (folder,) = installed.glob("lib/*/site-packages")
    monkeypatch.setattr(imports, "_site_directories", lambda: [str(folder)])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONUSERBASE", str(installed))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(REPOSITORY)]))
    monkeypatch.delenv("UNIFLOW_IMPORT", raising=False)
    return folder


def test_trained_by_class_paths_saved_and_loaded_elsewhere(site, uniflow, project, resolve):
    """All five at once, with the page's YAML; the weighting and the data are of the training only. Then a generator."""
    own_parts = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    (project / "own_parts.yaml").write_text(own_parts)
    result = uniflow("fit", "-c", "recipe.yaml", "-c", "own_parts.yaml", "--run", "run")
    assert result.code == 0, result.err
    used = yaml.safe_load((project / "run" / "config.yaml").read_text())
    slots = {**used["model"]["init_args"], "data": used["data"]}
    assert {slot: slots[slot]["class_path"] for slot in CLASSES} == {s: f"{PACKAGE}.{n}" for s, n in CLASSES.items()}
    assert slots["encoder"]["init_args"] == {"width": 128, "depth": 4, "weights": None}

    command = [sys.executable, "-c", LOAD, str(project / "run" / "tokenizer")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent)
    assert loaded.returncode == 0, loaded.stderr
    parts = ["TokenMLP", "ConvBottleneck", "PlainDecoder"]
    assert json.loads(loaded.stdout) == [parts, [1, 16, 4, 4], [1, 3, 32, 32]]

    words = ["-c", str(REPOSITORY / "configs/recipes/scenes_class_dit.yaml"), "--model.tokenizer", "run/tokenizer"]
    words += ["--data.size", "32", "--images", "null"]
    result = uniflow("fit", *words, *tiny_options(resolve(*words)), "--run", "drawn")
    assert result.code == 0, result.err
    result = uniflow("sample", "--generator", "drawn/generator", "--classes", "1,2", "--out", "samples")
    assert result.code == 0, result.err
    with Image.open(project / "samples" / "000001.png") as image:
        assert image.size == (32, 32)


def test_listed_with_ours_and_found_by_short_names(site, uniflow):
    text = " ".join((uniflow("fit", "--model.help", "TokenizerTask").out + uniflow("fit", "--help").out).split())
    for name in CLASSES.values():
        assert f"{PACKAGE}.{name}" in text, name
    short = [word for slot, name in CLASSES.items() if slot != "data" for word in (f"--model.{slot}", name)]
    result = uniflow("fit", "-c", "recipe.yaml", *short, "--data", "Ramps", "--print_config")
    assert result.code == 0, result.err
    assert all(f"class_path: {PACKAGE}.{name}" in result.out for name in CLASSES.values())


def test_a_task_and_a_head_are_listed_too(site, uniflow):
    assert f"{PACKAGE}.MeanColorTask" in " ".join(uniflow("fit", "--help").out.split())
    assert f"{PACKAGE}.MeanColorHead" in " ".join(uniflow("fit", "--model.help", "MeanColorTask").out.split())


def test_a_broken_package_is_named_in_one_line(tmp_path, monkeypatch):
    write_metadata(tmp_path, "broken-parts", ["uniflow"], {imports.PLUGIN_GROUP: {"parts": "broken_parts"}}, [])
    monkeypatch.setattr(imports, "_site_directories", lambda: [str(tmp_path)])
    with pytest.raises(UserError, match=r"cannot import broken_parts, a plugin of .* broken-parts: No module "):
        prepare()


def test_an_editable_install_that_lists_no_files_is_known_by_its_entry_point(tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "_site_directories", lambda: [str(tmp_path)])
    plugins = {imports.PLUGIN_GROUP: {"parts": "mine.parts"}}
    write_metadata(tmp_path, "mine", ["torch"], plugins, [])
    assert not imports._may_import("mine.parts")  # it does not depend on uniflow
    shutil.rmtree(tmp_path / "mine-1.0.dist-info")
    write_metadata(tmp_path, "mine", ["uniflow"], plugins, [])
    assert imports._may_import("mine.parts")


def test_the_page_shows_the_package():
    shown = dict(re.findall(r"`([\w./]+)`[^\n`]*:\n\n```(?:python|toml)\n(.*?)```", PAGE, flags=re.DOTALL))
    files = {file.name: file.read_text() for file in (HERE / PACKAGE).glob("*.py")}
    assert shown == {f"{PACKAGE}/{name}": text for name, text in files.items()} | {
        "pyproject.toml": (HERE / "pyproject.toml").read_text()
    }


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\(([\w./]+\.md)(?:#([\w-]+))?\)", PAGE)
    assert len(links) > 5
    for file, heading in links:
        text = (REPOSITORY / "docs" / file).read_text(encoding="utf-8")
        titles = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)$", text, re.M)}
        assert not heading or heading in titles, (file, heading)
