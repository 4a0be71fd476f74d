"""The settings of crops: one implementation, named in YAML as arguments of each data module."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from uniflow.data import CroppedImages, ImageFolder, WebDataset

OWN: dict[type[CroppedImages], dict[str, Any]] = {
    ImageFolder: {"root": "images"},
    WebDataset: {"train": "a.tar", "val": "b.tar", "test": "c.tar"},
}
SETTINGS: dict[str, Any] = {
    "size": 32,
    "scale": [0.2, 0.9],
    "ratio": [0.5, 2.0],
    "flip": 0.25,
    "center_crop": 0.5,
    "buckets": [16, [24, 48]],
    "max_pixels": 10000,
    "batch_size": 3,
    "num_workers": 1,
    "seed": 7,
}


def parsed(text: str) -> tuple[CroppedImages, dict[str, Any]]:
    """The data module that a YAML text describes, and the config that a run would save."""
    parser = ArgumentParser()
    parser.add_argument("--data", type=LightningDataModule)
    config = parser.parse_string(text)
    return parser.instantiate_classes(config).data, yaml.safe_load(parser.dump(config))["data"]


@pytest.mark.parametrize("module", OWN)
def test_yaml_names_the_settings_as_arguments_of_the_module(module: type[CroppedImages]) -> None:
    arguments = OWN[module] | SETTINGS
    text = yaml.safe_dump({"data": {"class_path": f"uniflow.data.{module.__name__}", "init_args": arguments}})
    data, saved = parsed(text)
    assert type(data) is module
    assert saved["init_args"].items() >= arguments.items()
    crop = data.train_crop
    assert (crop.size, crop.scale, crop.ratio, crop.flip) == (48, (0.2, 0.9), (0.5, 2.0), 0.25)
    assert data.crops() == {"size": 32, "center_crop": 0.5}
    assert data.buckets is not None
    assert (data.buckets.sizes, data.buckets.seed) == ([(16, 16), (24, 48)], 7)
    assert (data.batch_size, data.num_workers, data.seed) == (3, 1, 7)
    again, saved_again = parsed(yaml.safe_dump({"data": saved}))
    assert saved_again == saved
    assert again.crops() == data.crops()


@pytest.mark.parametrize("module", OWN)
def test_defaults_are_alike_in_all_modules(module: type[CroppedImages]) -> None:
    data = module(**OWN[module])
    crop = data.train_crop
    assert (crop.size, crop.scale, crop.ratio, crop.flip) == (224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert data.crops() == {"size": 224, "center_crop": 0.875}
    assert (data.buckets, data.batch_size, data.num_workers, data.seed) == (None, 64, 2, 0)


@pytest.mark.parametrize("module", OWN)
def test_an_unknown_argument_is_named(module: type[CroppedImages]) -> None:
    with pytest.raises(TypeError, match="sizes"):
        module(**OWN[module], sizes=3)
    with pytest.raises(ValueError, match="scale must satisfy"):
        module(**OWN[module], scale=(0.5, 0.2))
