"""Conversations about images in LLaVA's format: a JSON list, and a folder of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from uniflow.core.files import printable
from uniflow.core.json_files import LARGE, read_json
from uniflow.core.pixels import to_unit_range
from uniflow.data.base import ImageDataModule
from uniflow.data.errors import DataError
from uniflow.data.images.folder import name_to_unit
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.sampler import TrainSampler
from uniflow.data.skipped import SkipLog

MARK = "<image>"
HUMAN, ASSISTANT = ("human", "user"), ("gpt", "assistant")  # who speaks, under "from"


class Conversations(ImageDataModule):
    """Conversations about images, as LLaVA's instruction data has them:

        [{"id": "...", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
          {"from": "gpt", "value": "A cat."}, ...]}, ...]

    A batch is {"image": uint8 (B, 3, H, W), "conversation": for each sample a list of {"question", "answer"}, "name":
    the ids}. A sample without "image" is text alone; its image is black, and nothing refers to it. Where a sample with
    an image does not say <image>, it is put in front of the first question. A turn may have a "kind", by which
    accuracies are listed.

    Skipped, counted and named in RUN/skipped_images.log: samples without turns, with turns that do not alternate
    between human and gpt, with an empty answer, with <image> and no image or <image> more than once, and those whose
    image cannot be read.

    Whole images are shown: with `pad` the shorter side is padded in the image's mean colour, as LLaVA-1.5 does, else
    the image is squeezed to `size`.
    """

    list_fields: ClassVar[frozenset[str]] = frozenset({"conversation"})

    def __init__(
        self,
        train: str,
        images: str,
        val: str | None = None,
        test: str | None = None,
        size: int = 336,
        val_fraction: float = 0.02,
        test_fraction: float = 0.02,
        pad: bool = True,
        by_length: bool = True,
        **settings: Any,
    ) -> None:
        """
        Args:
            train: the JSON file.
            images: folder that the images' paths begin at.
            val: JSON file for validation; null takes a part of `train`, by a hash of each sample's id.
            test: JSON file for testing; null takes a part of `train`.
            size: side of the square images in pixels.
            val_fraction: share of `train` that is validated on, if there is no `val`.
            test_fraction: share of `train` that is tested on, if there is no `test`.
            pad: keep the image's aspect ratio.
            by_length: put conversations of similar length into one batch: less padding.
            settings: `batch_size`, `num_workers` and `seed`, see `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range; in `setup`, if a file or folder is missing, or a split is empty.
        """
        super().__init__(**settings)
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"Conversations: {name} must be in [0, 1), not {fraction}")
        if size < 1:
            raise ValueError(f"Conversations: size must be at least 1, not {size}")
        self.files = {"train": train, "val": val, "test": test}
        self.images, self.pad, self.by_length = Path(images).expanduser(), pad, by_length
        self.size = self.side = size
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.question_kinds: list[str] = []
        self._read: dict[str, list[dict[str, Any]]] = {}

    def make_dataset(self, split: str) -> ConversationFiles:
        samples = self._samples(split)
        if not samples:
            own = self.files[split] is not None
            change = "it holds no sample that can be used" if own else f"raise {split}_fraction or name a file"
            raise DataError(
                f"Conversations: the {split} split of {self.files[split] or self.files['train']} is empty; {change}"
            )
        if split != "train":
            kinds = {turn["kind"] for sample in samples for turn in sample["turns"] if "kind" in turn}
            self.question_kinds = sorted({*self.question_kinds, *kinds})
        return ConversationFiles(self, split, samples)

    def train_sampler(self, dataset: Dataset) -> TrainSampler:
        if not self.by_length:
            return super().train_sampler(dataset)
        assert isinstance(dataset, ConversationFiles)
        return LengthSampler(dataset, self.world_size, self.rank, self.seed, self.batch_size, dataset.lengths)

    def _settings(self) -> dict[str, Any]:
        order = f"by length, {self.global_batch} a step," if self.by_length else None
        return {**super()._settings(), "order": order}

    def _exact_only(self) -> tuple[str, ...]:
        return (*super()._exact_only(), "order")

    def _samples(self, split: str) -> list[dict[str, Any]]:
        """The samples of a split; those taken from `train` are no longer in it."""
        file = self.files[split]
        if split != "train" and file is not None:
            return self._usable(file, split)
        everything = self._usable(str(self.files["train"]), "train")
        at = {sample["id"]: name_to_unit(sample["id"]) for sample in everything}
        low = 0.0
        for name in ("test", "val"):
            high = low + (self.fractions[name] if self.files[name] is None else 0.0)
            if split == name:
                return [sample for sample in everything if low <= at[sample["id"]] < high]
            low = high
        return [sample for sample in everything if at[sample["id"]] >= low]

    def _usable(self, file: str, split: str) -> list[dict[str, Any]]:
        if file not in self._read:
            if not self.images.is_dir():
                raise DataError(f"Conversations: {self.images} is not a folder; give the folder of the images")
            self._read[file] = read_conversations(Path(file).expanduser(), split, self.skip_log)
        return self._read[file]


class ConversationFiles(Dataset):
    """The samples of one split; None for one whose image cannot be read.

    Attributes:
        lengths: characters of each conversation, int64 (N,).
    """

    def __init__(self, module: Conversations, split: str, samples: Sequence[dict[str, Any]]) -> None:
        texts = [json.dumps(sample).encode() for sample in samples]
        # One piece of memory, because a list of a million dicts is copied into every worker page by page.
        self._text = b"".join(texts)
        self._ends = np.array(list(accumulate(map(len, texts), initial=0)))
        self.lengths = np.array([sum(len(t["question"]) + len(t["answer"]) for t in s["turns"]) for s in samples])
        self.folder, self.split, self.skip_log = module.images, split, module.skip_log
        self.side, self.pad = module.side, module.pad

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        place = range(len(self))[int(index)]
        sample = json.loads(self._text[self._ends[place] : self._ends[place + 1]])
        image = torch.zeros(3, self.side, self.side, dtype=torch.uint8)
        if sample["image"] is not None:
            path = self.folder / sample["image"]
            try:
                image = fit_image(read_image(path), (self.side, self.side), self.pad)
            except ImageReadError as error:
                self.skip_log.add(self.split, str(path), error.reason)
                return None
        return {"image": image, "conversation": sample["turns"], "name": sample["id"]}


class LengthSampler(TrainSampler):
    """A shuffled order in which each batch of all processes has conversations of similar length.

    The shuffled samples are sorted in pieces of 50 batches, and the batches are shuffled: as in LLaVA.

    Args:
        dataset: of the conversations.
        num_replicas: number of processes.
        rank: this process.
        seed: of the order.
        batch_size: samples per batch and process.
        lengths: of the conversations, (N,).
    """

    BATCHES = 50

    def __init__(
        self, dataset: Dataset, num_replicas: int, rank: int, seed: int, batch_size: int, lengths: np.ndarray
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed)
        self.whole, self.lengths = batch_size * num_replicas, lengths

    def order(self) -> list[int]:
        shuffled = np.array(super().order())
        piece = self.whole * self.BATCHES
        pieces = [shuffled[start : start + piece] for start in range(0, len(shuffled), piece)]
        ordered = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in pieces])
        batches = len(ordered) // self.whole
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        mixed = torch.randperm(batches, generator=generator).tolist()
        rest = ordered[batches * self.whole :].tolist()
        return [i for b in mixed for i in ordered[b * self.whole : (b + 1) * self.whole].tolist()] + rest


def read_conversations(path: Path, split: str, skipped: SkipLog) -> list[dict[str, Any]]:
    """The usable samples of a JSON file: dicts with "id", "image" (or None) and "turns".

    Raises:
        DataError: if the file is missing, or is not a JSON list.
    """
    try:
        content = read_json(path, LARGE)
    except OSError as error:
        raise DataError(f"Conversations: {path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"Conversations: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"Conversations: {path} must hold a JSON list of samples, as LLaVA's files do")
    samples = []
    for number, entry in enumerate(content):
        name = printable(str(entry.get("id", number))) if isinstance(entry, dict) else str(number)
        try:
            samples.append({"id": name, **_sample(entry)})
        except ValueError as error:
            skipped.add(split, f"{path}: sample {name}", str(error))
    return samples


def _sample(entry: Any) -> dict[str, Any]:
    """Image and turns of one entry.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise ValueError("it has no list of conversations")
    image, said = entry.get("image"), entry["conversations"]
    if image is not None and not isinstance(image, str):
        raise ValueError(f"its image is not a path but {type(image).__name__}")
    if not said or len(said) % 2:
        raise ValueError(f"it has {len(said)} turns, not pairs of human and gpt")
    turns = []
    for first, second in zip(said[::2], said[1::2], strict=True):
        question, answer = _said(first, HUMAN), _said(second, ASSISTANT).strip()
        if not answer:
            raise ValueError("it has an empty answer")
        kind = {"kind": str(first["kind"])} if "kind" in first else {}
        turns.append({"question": question, "answer": answer, **kind})
    marks = sum((turn["question"] + turn["answer"]).count(MARK) for turn in turns)
    if marks > 1 or (marks and image is None):
        raise ValueError(f"it says {MARK} {marks} times and has {'no' if image is None else 'one'} image")
    if image is not None and not marks:
        turns[0]["question"] = f"{MARK}\n{turns[0]['question']}"
    return {"image": image, "turns": turns}


def _said(turn: Any, roles: Sequence[str]) -> str:
    """The text of one turn.

    Raises:
        ValueError: if it is not a text of one of these roles.
    """
    if not isinstance(turn, dict) or turn.get("from") not in roles or not isinstance(turn.get("value"), str):
        raise ValueError("its turns do not alternate between texts of human and gpt")
    return turn["value"]


def fit_image(image: Tensor, size: tuple[int, int], pad: bool = True) -> Tensor:
    """A whole image, uint8 or float in [0, 1], (..., 3, H, W), at another size, of the same type."""
    pixels = to_unit_range(image)
    pixels = pad_to_aspect(pixels, size) if pad else pixels
    batch = pixels if pixels.ndim == 4 else pixels[None]
    resized = F.interpolate(batch, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    resized = resized if image.is_floating_point() else (resized * 255).round().byte()
    return resized if pixels.ndim == 4 else resized[0]


def pad_to_aspect(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images (..., 3, H, W) padded on two sides, each in its mean colour, to the aspect ratio of `size`."""
    height, width = images.shape[-2:]
    taller, wider = max(height, -(-width * size[0] // size[1])), max(width, -(-height * size[1] // size[0]))
    padded = images.mean(dim=(-2, -1), keepdim=True).expand(*images.shape[:-2], taller, wider).clone()
    top, left = (taller - height) // 2, (wider - width) // 2
    padded[..., top : top + height, left : left + width] = images
    return padded
