"""`training_batches`: what training sees, epoch after epoch, without moving training's own position."""

import itertools

import pytest
import torch
from cli_fixtures import write_photos, write_shards
from tiny import tiny_scenes

from uniflow.data import ImageFolder, WebDataset


@pytest.fixture(params=["scenes", "folder", "shards", "buckets"])
def data(request, tmp_path):
    small = {"batch_size": 2, "num_workers": 0}
    if request.param == "scenes":
        return tiny_scenes(train_length=4, val_length=2, test_length=2, **small)
    if request.param == "shards":
        return WebDataset(**write_shards(tmp_path), size=16, **small)
    buckets = {"buckets": [16, 32]} if request.param == "buckets" else {}
    return ImageFolder(str(write_photos(tmp_path)), size=32, **buckets, **small)


def test_they_are_those_of_training_and_go_on_for_ever(data):
    data.setup("fit")
    expected = [batch["image"] for batch in data.train_dataloader()]
    found = [batch["image"] for batch in itertools.islice(data.training_batches(), 2 * len(expected))]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=False))
    second = found[len(expected) :]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(expected, second, strict=True))


def test_the_position_of_training_stays(data):
    data.setup("fit")
    before = data.position.epoch, data.position.samples
    list(itertools.islice(data.training_batches(), 5))
    assert (data.position.epoch, data.position.samples) == before
    again = [batch["image"] for batch in data.train_dataloader()]
    assert len(again) == data.epoch_batches()
