"""A tokenizer that was saved long ago keeps loading, and keeps giving the same latents and pictures."""

import json
import shutil

import pytest
import torch
from cli_fixtures import REPOSITORY
from safetensors.torch import load_file

from uniflow import Tokenizer
from uniflow.bottleneck import Bottleneck
from uniflow.core.imports import import_part
from uniflow.core.part import constructor_arguments
from uniflow.decoders import PixelDecoder
from uniflow.encoders import VisionEncoder

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden_tokenizer"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
PARTS = {"encoder": VisionEncoder, "bottleneck": Bottleneck, "decoder": PixelDecoder}


@torch.no_grad()
def assert_same_results(tokenizer):
    expected = load_file(GOLDEN / "expected.safetensors")
    for name in ("images", "odd"):
        images = expected[name]
        noise = torch.zeros(tokenizer.pad(images).shape)
        found = {
            "latents": tokenizer.encode(images),
            "reconstruction": tokenizer.reconstruct(images, steps=1, noise=noise),
            "reconstruction_steps3": tokenizer.reconstruct(images, steps=3, noise=noise),
        }
        for key, value in found.items():
            torch.testing.assert_close(
                value, expected[f"{name}/{key}"], atol=1e-5, rtol=0, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_it_loads_with_the_same_tensors_config_and_results():
    tokenizer = Tokenizer.from_pretrained(GOLDEN)
    shapes = {name: list(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    assert shapes == json.loads((GOLDEN / "keys.json").read_text())
    config = tokenizer.config()
    assert config["format"] == CONFIG["format"] == 1
    for part in PARTS:
        assert config[part]["class_path"] == CONFIG[part]["class_path"]
        arguments = config[part]["init_args"]  # newer versions may have added arguments with defaults
        assert {name: arguments[name] for name in CONFIG[part]["init_args"]} == CONFIG[part]["init_args"]
    assert_same_results(tokenizer)


def test_the_expected_values_are_sensitive():
    """The comparison would fail for slightly other weights."""
    tokenizer = Tokenizer.from_pretrained(GOLDEN)
    with torch.no_grad():
        tokenizer.bottleneck.fc2.bias += 1e-3
    with pytest.raises(AssertionError, match="latents"):
        assert_same_results(tokenizer)


def test_a_config_from_before_an_argument_was_added_still_loads(tmp_path):
    """It takes the default, which is why defaults of architectures never change."""
    config = json.loads(json.dumps(CONFIG))
    dropped = []
    for part, base in PARTS.items():
        defaults = constructor_arguments(import_part(config[part], base))
        arguments = config[part]["init_args"]
        for name in [n for n, value in arguments.items() if _plain(defaults[n][0].default) == value]:
            dropped.append(arguments.pop(name))
    assert len(dropped) >= 10
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "model.safetensors", tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert_same_results(tokenizer)
    for part in PARTS:  # and saving it again writes all of them down
        arguments = tokenizer.config()[part]["init_args"]
        assert {name: arguments[name] for name in CONFIG[part]["init_args"]} == CONFIG[part]["init_args"]


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_saving_it_again_gives_the_same_files(tmp_path):
    Tokenizer.from_pretrained(GOLDEN).save_pretrained(tmp_path)
    saved, golden = load_file(tmp_path / "model.safetensors"), load_file(GOLDEN / "model.safetensors")
    assert saved.keys() == golden.keys()
    assert all(torch.equal(saved[name], golden[name]) for name in golden)
