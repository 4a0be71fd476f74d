"""Batches: what is stacked, what stays a list, and what an error names."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import project, uniflow  # noqa: F401
from torch.utils.data import Dataset

from uniflow.data import ImageDataModule, ImageFolder, Scenes
from uniflow.data.collate import CollateError, collate


def sample(number: int, **fields: Any) -> dict[str, Any]:
    return {"image": torch.full((3, 4, 4), number, dtype=torch.uint8), "label": number, "name": f"n{number}", **fields}


def test_tensors_arrays_and_numbers_are_stacked_and_texts_are_listed() -> None:
    batch = collate([sample(i, depth=np.full((2, 2), i, np.float32), extra={"score": float(i)}) for i in range(3)])
    assert list(batch) == ["image", "label", "name", "depth", "extra"]
    assert batch["image"].shape == (3, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["label"].dtype == torch.int64
    assert batch["name"] == ["n0", "n1", "n2"]
    assert batch["depth"].shape == (3, 2, 2)
    assert batch["depth"].dtype == torch.float32
    assert batch["extra"]["score"].tolist() == [0, 1, 2]


def test_declared_fields_stay_lists_whatever_they_hold() -> None:
    samples = [sample(i, boxes=torch.zeros(i, 4), words=["a"] * i, same=torch.ones(2)) for i in range(3)]
    batch = collate(samples, list_fields={"boxes", "words", "same", "absent"})
    assert [len(b) for b in batch["boxes"]] == [0, 1, 2]
    assert batch["words"] == [[], ["a"], ["a", "a"]]
    assert isinstance(batch["same"], list)
    assert collate([s | {"boxes": 0, "words": 0} for s in samples])["same"].shape == (3, 2)
    assert isinstance(batch["image"], torch.Tensor)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ({"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(3, 4)}),
            r"'boxes' of different shapes, \(2, 4\) and \(3",
        ),
        (({"boxes": torch.zeros(2, 4)}, {"boxes": 3}), r"'boxes' of different shapes, \(2, 4\) and None"),
        (({"words": ["a"]}, {"words": ["a", "b"]}), "'words' cannot be stacked"),
        (({"scene": object()}, {"scene": object()}), "'scene' cannot be stacked"),
    ],
)
def test_what_cannot_be_stacked_is_named_with_the_way_out(fields: tuple[Any, Any], message: str) -> None:
    with pytest.raises(CollateError, match=message) as info:
        collate([sample(0, **fields[0]), sample(1, **fields[1])])
    assert "\n" not in str(info.value)
    assert str(info.value).endswith(f"or add '{next(iter(fields[0]))}' to the data module's list_fields")


def test_a_missing_field_is_named() -> None:
    for first, second in ((sample(0, mask=1), sample(1)), (sample(0), sample(1, mask=1))):
        with pytest.raises(CollateError, match=r"samples 0 and 1 of a batch have different fields: .* mask"):
            collate([first, second])


class Boxes(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample(int(index), boxes=torch.zeros(int(index), 4))


class Undeclared(ImageDataModule):
    size = 4

    def make_dataset(self, split: str) -> Dataset:
        return Boxes()


class Declared(Undeclared):
    list_fields = frozenset({"boxes"})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_a_data_module_declares_its_list_fields(workers: int, loader: str) -> None:
    batch = next(iter(getattr(Declared(batch_size=4, num_workers=workers), loader)()))
    assert sorted(len(b) for b in batch["boxes"]) == [0, 1, 2, 3]
    with pytest.raises(CollateError, match="'boxes' of different shapes") as info:
        next(iter(getattr(Undeclared(batch_size=4, num_workers=workers), loader)()))
    assert "\n" not in str(info.value)
    assert "Traceback" not in str(info.value)


def test_collate_goes_to_workers_without_its_module() -> None:
    assert pickle.loads(pickle.dumps(Declared().collate)).keywords == {"list_fields": frozenset({"boxes"})}


def test_a_module_may_have_a_collate_function() -> None:
    class Static(Undeclared):
        collate = staticmethod(len)  # type: ignore[assignment]

    assigned = Undeclared(batch_size=4, num_workers=0)
    assigned.collate = len
    assert (
        next(iter(assigned.val_dataloader())) == next(iter(Static(batch_size=4, num_workers=0).val_dataloader())) == 4
    )


def test_scenes_declare_what_has_a_length_of_its_own() -> None:
    assert {"boxes", "caption"} < Scenes.list_fields
    assert ImageFolder.list_fields == frozenset()


BOXES = """
import torch
from torch.utils.data import Dataset
from uniflow.data import Scenes


class Samples(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "cars": torch.zeros(int(index), 4)}


class Cars(Scenes):
    def make_dataset(self, split):
        return Samples()
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_undeclared_field_is_one_line_of_the_command(
    project: Path,  # noqa: F811
    uniflow: Callable[..., Any],  # noqa: F811
    workers: str,
) -> None:
    (project / "cars.py").write_text(BOXES)
    options = ("--data.size", "32", "--data.batch_size", "4", "--data.num_workers", workers)
    result = uniflow("fit", "-c", "recipe.yaml", "--data", "cars.Cars", *options, "--trainer.max_steps", "1")
    assert "'cars' of different shapes" in result.error
