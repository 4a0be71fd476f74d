"""Tokenizers that are damaged or hostile: one line, exit code 2, and nothing of theirs is run."""

import shutil
import sys

import pytest
import torch
from malformed_cases import CASES, GOLDEN, argument, checkpoint, config, tensors
from PIL import Image
from safetensors.torch import load_file

from uniflow import Tokenizer
from uniflow.cli import main
from uniflow.encoders import timm_encoder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A good tokenizer in a directory that holds modules which leave a file when they are imported."""
    shutil.copytree(GOLDEN, tmp_path / "tokenizer")
    for module in ("canary_module.py", "canary_posing.py", "canary_package/__init__.py", "canary_package/parts.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    (tmp_path / "canary_posing-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: canary_posing\nVersion: 1.0\nRequires-Dist: uniflow\n"
    (tmp_path / "canary_posing-1.0.dist-info" / "METADATA").write_text(metadata)
    (tmp_path / "canary_posing-1.0.dist-info" / "top_level.txt").write_text("canary_posing\n")
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("UNIFLOW_DEBUG", raising=False)
    monkeypatch.delenv("UNIFLOW_IMPORT", raising=False)
    return tmp_path / "tokenizer"


SUMMARY = ["summary", "tokenizer"]
RECONSTRUCT = ["reconstruct", "photo.png", "--tokenizer", "tokenizer"]
FIRST = {name.partition(":")[0]: name for name in reversed(CASES)}  # of each kind: both call from_pretrained


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_line_and_nothing_is_run(folder, capfd, name):
    spoil, expected = CASES[name]
    spoil(folder)
    before = set(sys.modules)
    for command in (SUMMARY, RECONSTRUCT) if name in FIRST.values() else (RECONSTRUCT,):
        assert main(command) == 2
        error = capfd.readouterr().err
        assert error.startswith("uniflow: error: ")
        assert error.count("\n") == 1
        assert expected in error
        assert len(error) < 1000
    assert not (folder.parent / "canary").exists()
    assert not (folder.parent / "reconstructions").exists()
    strangers = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not {"antigravity", "pip", "canary_module", "canary_package", "canary_posing"} & strangers


def test_there_are_enough_of_them():
    assert len(CASES) >= 100


def test_the_good_ones_load(folder, capfd):
    """The cases above fail for what was done to them."""
    for spoil in (lambda _: None, lambda path: checkpoint(path, lambda old: old)):
        spoil(folder)
        assert main(["summary", "tokenizer"]) == 0


def test_the_canary_sings(folder):
    import canary_module  # noqa: F401

    assert (folder.parent / "canary").exists()
    del sys.modules["canary_module"]


@pytest.mark.parametrize("weights", ["../../etc/passwd", "/etc/passwd", "pretrained", "../outside.safetensors"])
def test_weights_that_the_config_names_are_not_read(folder, monkeypatch, weights):
    config(folder, argument("encoder", "weights", weights))
    asked = []
    monkeypatch.setattr(timm_encoder, "read_weights", lambda name, given: asked.append(given))
    assert Tokenizer.from_pretrained(folder).config()["encoder"]["init_args"]["weights"] == weights
    assert asked == [None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_weights_are_cast(folder, dtype):
    tensors(folder, lambda old: {name: tensor.to(dtype) for name, tensor in old.items()})
    tokenizer = Tokenizer.from_pretrained(folder)
    golden = load_file(GOLDEN / "model.safetensors")
    for name, tensor in tokenizer.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, golden[name].to(dtype).float(), atol=0, rtol=0)
