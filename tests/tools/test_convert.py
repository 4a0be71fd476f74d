"""`uniflow convert`: what it writes, and one line for everything that is wrong with a folder."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from official_reference import OFFICIAL, official_config
from safetensors.torch import load_file, save_file

from uniflow import Tokenizer
from uniflow.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:a velocity-predicting")


ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
    """A copy of the release's checkpoint that a test may damage."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((OFFICIAL / name).read_bytes())
    return folder


def test_there_and_back(tmp_path, capsys):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert main(["convert", "official", str(OFFICIAL), str(ours)]) == 0
    printed = capsys.readouterr().out
    assert f"{ours}: " in printed
    assert "130 tensors, 0.5 M parameters" in printed
    assert main(["convert", "to-official", str(ours), str(theirs)]) == 0
    first, second = load_file(OFFICIAL / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Tokenizer.from_pretrained(ours).config() == Tokenizer.from_official(theirs).config()


def test_documented_commands(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "official.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("uniflow ")]
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "UniFlow-release").symlink_to(OFFICIAL)
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    exec(page.split("```python\n")[1].split("```")[0], {})


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    assert main(["convert", "official", str(OFFICIAL), str(out)]) == 2
    assert "--overwrite true" in capsys.readouterr().err
    assert (out / "config.json").read_text() == "mine"
    assert not (out / "model.safetensors").exists()
    assert main(["convert", "official", str(OFFICIAL), str(out), "--overwrite", "true"]) == 0
    Tokenizer.from_pretrained(out)
    (tmp_path / "file").write_text("mine")
    assert main(["convert", "official", str(OFFICIAL), str(tmp_path / "file"), "--overwrite", "true"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def _change_config(**changes):
    def damage(folder):
        config = {k: v for k, v in (official_config() | changes).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def _change_tensors(change):
    def damage(folder):
        save_file(change(load_file(OFFICIAL / "model.safetensors")), folder / "model.safetensors")

    return damage


def _pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _disguised(folder):
    torch.save(load_file(OFFICIAL / "model.safetensors"), folder / "model.safetensors")


def _nothing(folder):
    (folder / "model.safetensors").unlink()


NAME = "chal_proj.c_fc.weight"
DAMAGES = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    "a field less": (_change_config(latent_ch=None), "lacks fields of the UniFlow release's config: latent_ch"),
    "another model": (_change_config(model_type="intern_vit_6b"), "model_type must be 'uniflow', not 'intern_vit_6b'"),
    "another norm": (_change_config(norm_type="rms_norm"), "norm_type must be 'layer_norm'"),
    "another eps": (_change_config(layer_norm_eps=1e-5), "layer_norm_eps must be 1e-06"),
    "a size as text": (
        _change_config(hidden_size="64"),
        "hidden_size must be a whole number from 1 to",
    ),
    "no step": (
        _change_config(num_sampling_steps="0"),
        "num_sampling_steps must be a whole number from 1",
    ),
    "two widths": (_change_config(vit_hidden_size=32), "vit_hidden_size must be hidden_size, 64, not 32"),
    "half a patch": (_change_config(image_size=60), "image_size 60 must be a multiple of patch_size 14"),
    "odd heads": (_change_config(num_attention_heads=5), "cannot be built as a ViT encoder"),
    "far too many layers": (_change_config(num_hidden_layers=60000), "130 tensors for 60005 blocks"),
    "far too wide": (
        _change_config(hidden_size=65536, vit_hidden_size=65536),
        "is (1, 17, 64), not (1, 17, 65536)",
    ),
    "larger than any": (_change_config(latent_ch=10**12), "latent_ch must be a whole number from 1 to 65536"),
    "a layer more": (_change_config(num_hidden_layers=5), "missing encoder.layers.4.norm1.weight"),
    "a layer less": (_change_config(num_hidden_layers=3), "unexpected encoder.layers.3.attn.proj.bias"),
    "missing": (_change_tensors(lambda t: {k: v for k, v in t.items() if k != NAME}), f"missing {NAME}"),
    "surplus": (_change_tensors(lambda t: {**t, "mlp1.0.weight": torch.zeros(1)}), "unexpected mlp1.0.weight"),
    "misshapen": (_change_tensors(lambda t: {**t, NAME: torch.zeros(3)}), f"{NAME} is (3,), not (64, 64)"),
    "integers": (
        _change_tensors(lambda t: {**t, NAME: torch.zeros(64, 64, dtype=torch.int64)}),
        f"{NAME} is torch.int64, not torch.float32",
    ),
    "all wrong": (_change_tensors(lambda t: {f"model.{k}": v for k, v in t.items()}), "and 255 more"),
    "no weights": (_nothing, "neither model.safetensors nor model.safetensors.index.json"),
    "pickled": (_pickled, "pickled weights only (pytorch_model.bin)"),
    "pickle in disguise": (_disguised, "not a valid safetensors file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_gives_one_clear_line(tmp_path, source, capsys, damage):
    change, message = DAMAGES[damage]
    change(source)
    assert main(["convert", "official", str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(tmp_path, capsys):
    for direction, place, message in [
        ("official", tmp_path / "absent", "is not a folder: give the one that holds config.json"),
        ("official", OFFICIAL / "config.json", "is not a folder"),
        ("to-official", tmp_path / "absent", "no tokenizer at"),
        ("to-official", OFFICIAL, "format"),
        ("sideways", OFFICIAL, "to-official"),
    ]:
        assert main(["convert", direction, str(place), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_the_advice_for_pickled_weights_works(source, monkeypatch, capsys):
    expected = load_file(source / "model.safetensors")
    _pickled(source)
    assert main(["convert", "official", str(source), str(source / "out")]) == 2
    advice = capsys.readouterr().err.split('python -c "')[1].rpartition('"')[0]
    monkeypatch.chdir(source)
    exec(advice, {})
    found = load_file(source / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
