"""Latents that `uniflow encode` has computed once, as training data of a generator: the files and the data module."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uniflow.core.atomic import replacing
from uniflow.core.errors import one_line
from uniflow.core.json_files import read_json
from uniflow.data.base import ImageDataModule
from uniflow.data.errors import DataError
from uniflow.data.sampler import sample_generator

INDEX = "index.json"
FORMAT = 1
KIND = "latents"
ENCODED = ("train", "val")  # the test judges images


class CachedLatents(ImageDataModule):
    """The latents in a folder that `uniflow encode` has written; a batch is {"latent": float32 (B, C, h, w)},
    normalised, with the numbers and texts that its samples had, such as "label" and "caption".

    In training one of a sample's stored crops and flips is drawn, a function of (seed, epoch, sample). Validation has
    one view of each sample. There is no test split: `uniflow test` judges images.

    Attributes:
        tokenizer_identity: whose latents these are: hash of the weights, spec and statistics.
    """

    field_hints: ClassVar[dict[str, str]] = {
        "caption": "encode the images again, with data that has captions (data.caption of shards and folders)"
    }

    def __init__(self, root: str, batch_size: int = 64, num_workers: int = 2, seed: int = 0) -> None:
        """
        Args:
            root: the folder.
            batch_size: samples per batch and process.
            num_workers: worker processes per loader; 0 reads in the main process.
            seed: seed of order and choice of views, >= 0.

        Raises:
            ValueError: if the folder does not hold latents, or not all of them yet, or a number is out of range.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.root = Path(root).expanduser()
        self.index = read_index(self.root)
        if "shards" not in self.index:
            raise ValueError(f"CachedLatents: {root} is not complete yet; run the same `uniflow encode` again")
        for split in ENCODED:
            for number in range(len(self.index["shards"][split])):
                if not shard_path(self.root, split, number).is_file():
                    raise ValueError(f"CachedLatents: {shard_path(self.root, split, number)} is missing; encode again")
        size = self.index["data"]["size"]
        self.size = size if isinstance(size, int) else (size[0], size[1])
        self.class_names = self.index["class_names"]
        self.tokenizer_identity: dict[str, Any] = self.index["tokenizer"]

    def make_dataset(self, split: str) -> LatentShards:
        """The latents of `split`; none of "test"."""
        return self._shards(split, training=split == "train")

    def make_plain_train_dataset(self) -> LatentShards:
        return self._shards("train", training=False)

    def _shards(self, split: str, training: bool) -> LatentShards:
        counts = self.index["shards"].get(split, [])
        return LatentShards(self.root, split, counts, self.seed if training else None)

    def _evaluation_loader(self, split: str) -> DataLoader:
        if split == "test":
            raise ValueError(
                "CachedLatents has no test split, because the test judges images: give the images' data module, such "
                "as --data configs/data/scenes.yaml"
            )
        return super()._evaluation_loader(split)


class LatentShards(Dataset[dict[str, Any]]):
    """The samples of one split.

    Args:
        root: the folder.
        split: "train" or "val".
        counts: number of samples in each shard.
        seed: of the choice among a sample's views; None always takes the first.
    """

    def __init__(self, root: Path, split: str, counts: Sequence[int], seed: int | None) -> None:
        self.root, self.split, self.seed = root, split, seed
        self.ends = list(accumulate(counts))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect_right(self.ends, int(index))
        row = int(index) - (self.ends[number - 1] if number else 0)
        path = shard_path(self.root, self.split, number)
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, framework="pt")
            return self._sample(self._open[number], row, index)
        except (SafetensorError, OSError, IndexError) as error:
            raise DataError(_damaged(path, error)) from error

    def _sample(self, file: Any, row: int, index: int) -> dict[str, Any]:
        latents = file.get_slice("latent")
        views, view = latents.get_shape()[1], 0
        if self.seed is not None and views > 1:
            view = int(torch.randint(views, (), generator=sample_generator(self.seed, index)))
        sample: dict[str, Any] = {"latent": latents[row : row + 1, view : view + 1][0, 0].float()}
        for key in file.keys():  # noqa: SIM118  # it is not a dict
            kind, _, field = key.partition(".")
            if kind == "number":
                values = file.get_slice(key)
                crop = view * values.get_shape()[1] // views
                sample[field] = int(values[row : row + 1, crop : crop + 1])
            elif kind == "ends":
                ends = file.get_slice(key)
                crops = ends.get_shape()[1]
                first, last = ends[row : row + 1, view * crops // views][0].tolist()
                sample[field] = bytes(file.get_slice(f"text.{field}")[first:last].numpy()).decode()
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # workers open their own


def shard_path(root: Path, split: str, number: int) -> Path:
    """The file of a shard."""
    return root / f"{split}-{number:06d}.safetensors"


def write_shard(path: Path, latents: Tensor, fields: Mapping[str, Sequence[Sequence[Any]]], skipped: int) -> None:
    """Write a shard at once.

    Args:
        path: see `shard_path`.
        latents: (n, V, C, h, w), the V views of n samples: their crops, each with its flip behind it if there are
            flips.
        fields: name -> for each sample the value of each crop, all integers or all texts.
        skipped: samples that could not be read.
    """
    tensors = {"latent": latents.contiguous()}
    for name, rows in fields.items():
        if all(isinstance(value, int) for row in rows for value in row):
            tensors[f"number.{name}"] = torch.tensor(rows, dtype=torch.int64)
            continue
        texts = [str(value).encode() for row in rows for value in row]
        ends = torch.tensor([0, *accumulate(map(len, texts))])
        tensors[f"text.{name}"] = torch.frombuffer(bytearray(b"".join(texts) or b" "), dtype=torch.uint8)
        tensors[f"ends.{name}"] = torch.stack([ends[:-1], ends[1:]], dim=1).view(len(rows), -1, 2)
    with replacing(path) as new:
        save_file(tensors, new, metadata={"skipped": str(skipped)})


def read_shard_head(path: Path) -> tuple[list[int], int]:
    """Shape of a shard's latents, and how many samples could not be read.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.get_slice("latent").get_shape()), int(file.metadata()["skipped"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(_damaged(path, error)) from error


def read_index(root: Path) -> dict[str, Any]:
    """The index of a folder of latents; without "shards" as long as the encoding has not ended.

    Raises:
        ValueError: if there is none, or it is not one.
    """
    path = root / INDEX
    if not path.is_file():
        raise ValueError(f"{root} does not hold latents: it has no {INDEX}, which `uniflow encode` writes")
    index = read_json(path)
    if not (isinstance(index, dict) and index.get("kind") == KIND and index.get("format") == FORMAT):
        raise ValueError(f"{path} does not describe latents of format {FORMAT}, which `uniflow encode` writes")
    return index


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged ({one_line(error, 200)}); delete it, and run the same `uniflow encode` again"
