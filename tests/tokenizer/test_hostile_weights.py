"""Weights that would give NaN, hang or fill the memory: one line, exit code 2."""

import os
import shutil
import zipfile

import pytest
import torch
from malformed_cases import GOLDEN
from safetensors.torch import load_file, save_file

from uniflow import Tokenizer
from uniflow.cli import main
from uniflow.core.torch_files import load_plain
from uniflow.encoders import SceneViT

NAME = "bottleneck.fc1.weight"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "tokenizer")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder, capfd, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME][0, 0] = value
    save_file(tensors, folder / "model.safetensors")
    assert main(["summary", str(folder)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"the tensor {NAME} has 1 values that are NaN or infinite" in error


def test_so_it_is_in_a_checkpoint_and_in_an_encoders_file(folder, tmp_path):
    tokenizer = Tokenizer.from_pretrained(folder)
    state = {f"tokenizer.{key}": value for key, value in tokenizer.state_dict().items()}
    average = {f"tokenizer.{NAME}": torch.full_like(state[f"tokenizer.{NAME}"], torch.nan)}
    torch.save({"tokenizer": tokenizer.config(), "state_dict": state, "ema": average}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=rf"last\.ckpt: the tensor {NAME} has \d+ values"):
        Tokenizer.from_pretrained(tmp_path / "last.ckpt")
    encoder = SceneViT(None).state_dict()
    encoder["model.norm_pre.bias" if "model.norm_pre.bias" in encoder else "model.cls_token"].fill_(torch.nan)
    save_file({key: value.contiguous() for key, value in encoder.items()}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"^weights: .*encoder\.safetensors: the tensor .* NaN or infinite"):
        SceneViT(str(tmp_path / "encoder.safetensors"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_named_pipe_in_the_folder_is_refused_at_once(folder, capfd, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert main(["summary", str(folder)]) == 2
    assert f"{name}: a named pipe; give a regular file" in capfd.readouterr().err


@pytest.mark.parametrize("path", ["pipe.ckpt", "/dev/zero"])
def test_a_named_pipe_or_device_instead_of_a_checkpoint_is_refused_at_once(tmp_path, capfd, path):
    if path == "pipe.ckpt":
        os.mkfifo(tmp_path / path)
    assert main(["summary", str(tmp_path / path)]) == 2
    error = capfd.readouterr().err
    assert "give a regular file" in error
    assert error.count("\n") == 1


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    torch.save({"x": torch.zeros(10_000)}, tmp_path / "plain.ckpt")
    assert load_plain(tmp_path / "plain.ckpt")["x"].sum() == 0
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(ValueError, match=r"bomb\.ckpt is not a checkpoint that can be read safely: its archive would"):
        load_plain(tmp_path / "bomb.ckpt")


def test_the_old_format_of_torch_is_refused(tmp_path):
    torch.save({"x": torch.zeros(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="read safely: it is damaged"):
        load_plain(tmp_path / "old.ckpt")
