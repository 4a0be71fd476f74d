"""Scenes as a dataset and as a data module."""

import pickle
from typing import Any

import pytest
import torch

from uniflow.data.sampler import SampleIndex
from uniflow.data.scenes import CLASS_NAMES, FIELDS, Scenes, ScenesDataset


def test_sample_holds_what_was_asked_for() -> None:
    assert set(ScenesDataset(0, 4)[0]) == {"image", "label"}
    sample = ScenesDataset(0, 4, (32, 48), FIELDS, frames=3)[1]
    shapes = {k: tuple(v.shape) for k, v in sample.items() if isinstance(v, torch.Tensor)}
    n = len(sample["box_labels"])
    assert shapes == {
        "image": (3, 32, 48),
        "mask": (32, 48),
        "depth": (32, 48),
        "instances": (32, 48),
        "boxes": (n, 4),
        "box_labels": (n,),
        "box_visibility": (n,),
        "clip": (3, 3, 32, 48),
        "clip_instances": (3, 32, 48),
    }
    assert sample["image"].dtype == sample["clip"].dtype == torch.uint8
    assert torch.equal(sample["clip"][0], sample["image"])
    assert sample["box_labels"][0] == sample["label"]
    assert isinstance(sample["caption"], str)
    assert set(sample["questions"][0]) == {"kind", "question", "answer"}


def test_epochs_bring_new_scenes_only_if_asked() -> None:
    repeated, fresh = ScenesDataset(0, 4), ScenesDataset(0, 4, fresh_epochs=True)
    later = SampleIndex(1, epoch=2)
    assert torch.equal(repeated[later]["image"], repeated[1]["image"])
    assert not torch.equal(fresh[later]["image"], fresh[1]["image"])
    assert torch.equal(fresh[later]["image"], ScenesDataset(0, 100)[9]["image"])


def test_fewer_objects_leave_the_rest_of_the_scene_as_it_was() -> None:
    fields = ("boxes", "instances", "caption")
    whole, alone = (ScenesDataset(0, 20, fields=fields, max_objects=count) for count in (5, 1))
    for one, other in zip(whole, alone, strict=True):
        assert one["label"] == other["label"]
        assert torch.equal(one["boxes"][:1], other["boxes"])
        main = one["instances"] == 1
        assert torch.equal(main, other["instances"] == 1)
        assert other["instances"].max() == 1
        same = (one["image"] == other["image"]).all(0)[main]
        assert same.float().mean() > 0.9  # but for its edge, through which others shine


def test_end_of_the_dataset() -> None:
    dataset = ScenesDataset(0, 3)
    assert torch.equal(dataset[-1]["image"], dataset[2]["image"])
    with pytest.raises(IndexError, match="scene 3 of 3"):
        dataset[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": ("mask", "masks")}, "no field masks; it has mask,"),
        ({"train_length": 0}, "length must be at least 1"),
        ({"size": 4}, "at least 16 pixels"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"max_objects": 6}, "max_objects must be 1 to 5, not 6"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)


def test_splits_are_disjoint_and_named() -> None:
    data = Scenes(size=32, train_length=8, val_length=8, test_length=8, batch_size=8, num_workers=0)
    data.setup()
    assert data.class_names == list(CLASS_NAMES)
    images = torch.cat([next(iter(loader()))["image"] for loader in (data.train_dataloader, data.val_dataloader)])
    test = next(iter(data.test_dataloader()))
    images = torch.cat([images, test["image"]])
    assert test["name"] == [f"scene {number:06d}" for number in range(8)]
    assert "name" not in next(iter(data.train_dataloader()))
    assert images.shape == (24, 3, 32, 32)
    assert images.flatten(1).unique(dim=0).shape[0] == 24


def test_batches_stack_pixels_and_list_the_rest() -> None:
    data = Scenes(size=32, train_length=8, batch_size=4, num_workers=0, fields=FIELDS, frames=2)
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].dtype == torch.int64
    assert batch["mask"].shape == batch["depth"].shape == (4, 32, 32)
    assert batch["clip"].shape == (4, 2, 3, 32, 32)
    assert [len(batch[k]) for k in ("boxes", "box_labels", "box_visibility", "caption", "questions")] == [4] * 5
    assert all(b.shape == (len(c), 4) for b, c in zip(batch["boxes"], batch["box_labels"], strict=True))


def test_dataset_travels_to_workers() -> None:
    dataset = ScenesDataset(2, 5, fields=("mask",))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["image"], dataset[3]["image"])
