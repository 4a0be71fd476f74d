"""docs/decoders.md: its code runs, its commands parse, its table is complete."""

import re
import shlex
from types import SimpleNamespace

import torch
import torchvision
import yaml
from cli_fixtures import REPOSITORY, tiny_options
from lpips_weights import random_backbone, write_lpips

import uniflow.decoders
from uniflow.decoders import PixelDecoder
from uniflow.losses import Perceptual

PAGE = (REPOSITORY / "docs" / "decoders.md").read_text()
FIRST, EXPORT, LOSS, DECODER = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
[SHARP] = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = re.findall(r"^uniflow fit .*$", PAGE, flags=re.MULTILINE)


def run(code):
    exec(compile(code, "docs/decoders.md", "exec"), {})


def test_first_example():
    run(FIRST)


def test_the_script_writes_what_perceptual_reads(tmp_path, monkeypatch):
    tensors = random_backbone("vgg16") | {"classifier.0.weight": torch.zeros(3)}
    model = SimpleNamespace(state_dict=lambda: tensors)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: model)
    run(EXPORT)
    monkeypatch.undo()
    written = str(tmp_path / "lpips_vgg16.safetensors")
    estimate, images = torch.rand(2, 1, 3, 16, 16)
    same = Perceptual(write_lpips(tmp_path / "ours.safetensors", "vgg16"))(estimate, images)
    assert Perceptual(written)(estimate, images) == same


def test_every_command_parses_and_those_with_own_parts_train(project, resolve, uniflow):
    (project / "configs").symlink_to(REPOSITORY / "configs")
    (project / "sharp.yaml").write_text(SHARP)
    (project / "my_losses.py").write_text(LOSS)
    (project / "my_decoder.py").write_text(DECODER)
    write_lpips(project / "lpips_vgg16.safetensors", "vgg16")
    assert len(COMMANDS) == 8
    recipe = ["-c", "configs/recipes/scenes_paper.yaml"]
    config = resolve(*recipe)
    del config["model"]["init_args"]["decoder"]  # which some commands replace
    tiny = [*tiny_options(config), "--data.size", "32", "--trainer.limit_val_batches", "0"]
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        if "my_" in line or "sharp" in line:
            assert words[1:3] == recipe
            result = uniflow(*words, *tiny)
            assert result.code == 0, f"{line}\n{result.err}"
        else:
            resolve(*words[1:])


def test_table_of_decoders():
    rows = re.findall(r"^\| `(\w+Decoder)` .*?\| ((?:`\w+\.yaml` ?)+)\|$", PAGE, flags=re.MULTILINE)
    classes = [c.__name__ for c in vars(uniflow.decoders).values() if isinstance(c, type)]
    assert {name for name, _ in rows} == {n for n in classes if n.endswith("Decoder")} - {PixelDecoder.__name__}
    listed = {}
    for name, files in rows:
        for file in re.findall(r"`(\S+)`", files):
            config = yaml.safe_load((REPOSITORY / "configs" / "decoders" / file).read_text())
            listed[file] = config["class_path"].rpartition(".")[2]
            assert listed[file] == name
    assert listed.keys() == {p.name for p in (REPOSITORY / "configs" / "decoders").glob("*.yaml")}
