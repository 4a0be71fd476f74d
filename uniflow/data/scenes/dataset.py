"""Scenes as a map-style dataset and as a data module."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from uniflow.core.numbers import check_ranges
from uniflow.data.base import SPLITS, ImageDataModule
from uniflow.data.collate import collate
from uniflow.data.scenes.language import caption, facts, questions
from uniflow.data.scenes.renderer import Renderer, Rendering
from uniflow.data.scenes.scene import MAX_OBJECTS, sample_scene
from uniflow.data.scenes.shapes import CLASS_NAMES

FIELDS: tuple[str, ...] = ("mask", "depth", "instances", "boxes", "caption", "facts", "questions", "clip")


class ScenesDataset(Dataset[dict[str, Any]]):
    """Procedural scenes; sample i is a function of (seed, stream, i) and of the image's shape only.

    Every sample has "image", uint8 (3, H, W) RGB, and "label", the shape class of the nearest and largest object. On
    request (`fields`):

    - "mask": uint8 (H, W), 0 is background and k + 1 is shape class k;
    - "depth": float32 (H, W), distance from the camera in metres, at most 10;
    - "instances": uint8 (H, W), 0 is background and i + 1 is the i-th object, nearest first;
    - "boxes": "boxes" float32 (n, 4), x0 y0 x1 y1 in pixels around the visible part of each object, nearest first;
      "box_labels" int64 (n,), shape classes; "box_visibility" float32 (n,), visible part of the silhouette in (0, 1];
    - "caption": a sentence;
    - "facts": what that sentence says, as numbers: a dict with "shape", "color", "texture", "background" and "count",
      with `positions` also "position" and "relation"; see `uniflow.data.scenes.language.facts`;
    - "questions": a list of dicts with "kind", "question" and "answer";
    - "clip": "clip" uint8 (T, 3, H, W), the scene in motion, whose first frame equals "image", and "clip_instances"
      uint8 (T, H, W), in which an object keeps its number.

    Args:
        seed: any integer >= 0.
        length: samples per epoch.
        size: height and width in pixels, or one number for a square.
        fields: names from `FIELDS`.
        stream: different streams of one seed share no scene.
        frames: number of frames T of a clip.
        fresh_epochs: whether every epoch has new scenes; the epoch is part of the index (see `SampleIndex`).
        named: whether samples have a "name", such as "scene 000012".
        max_objects: most objects of a scene, 1 to 5; the nearest ones are kept, and all else of the scene is as it was.
        positions: whether captions and facts say where the objects are, too.

    Raises:
        ValueError: if an argument is out of range or a field is unknown.
    """

    def __init__(
        self,
        seed: int,
        length: int,
        size: int | tuple[int, int] = 64,
        fields: Sequence[str] = (),
        stream: int = 0,
        frames: int = 8,
        fresh_epochs: bool = False,
        named: bool = False,
        max_objects: int = MAX_OBJECTS,
        positions: bool = False,
    ) -> None:
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise ValueError(f"Scenes has no field {', '.join(unknown)}; it has {', '.join(FIELDS)}")
        numbers = {"seed": (seed, 0, 2**63), "length": (length, 1, 10**12), "frames": (frames, 1, 10_000)}
        check_ranges("Scenes", numbers)
        if not 1 <= max_objects <= MAX_OBJECTS:
            raise ValueError(f"Scenes: max_objects must be 1 to {MAX_OBJECTS}, not {max_objects}")
        self.seed, self.length, self.stream, self.frames = seed, length, stream, frames
        self.max_objects, self.positions = max_objects, positions
        self.fields = frozenset(fields)
        self.fresh_epochs, self.named = fresh_epochs, named
        self.renderer = Renderer(size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        epoch = getattr(index, "epoch", 0) if self.fresh_epochs else 0
        number = int(index) % self.length + epoch * self.length
        scene = sample_scene(self.seed, number, self.stream, self.renderer.extent)
        scene = replace(scene, objects=scene.objects[: self.max_objects])
        rendering = self.renderer.render(scene)
        sample: dict[str, Any] = {"image": torch.from_numpy(rendering.image), "label": rendering.label}
        for field in ("mask", "depth", "instances"):
            if field in self.fields:
                sample[field] = torch.from_numpy(getattr(rendering, field))
        if "boxes" in self.fields:
            sample.update(_boxes(rendering))
        if "caption" in self.fields:
            rng = np.random.default_rng((self.seed, self.stream, number, 1))
            sample["caption"] = caption(scene, rng, self.positions)
        if "facts" in self.fields:
            sample["facts"] = facts(scene, self.positions)
        if "questions" in self.fields:
            rng = np.random.default_rng((self.seed, self.stream, number, 2))
            sample["questions"] = [q._asdict() for q in questions(scene, rng)]
        if "clip" in self.fields:
            frames = self.renderer.clip(scene, self.frames)
            sample["clip"] = torch.from_numpy(np.stack([f.image for f in frames]))
            sample["clip_instances"] = torch.from_numpy(np.stack([f.instances for f in frames]))
        return sample | ({"name": f"scene {number:06d}"} if self.named else {})


class Scenes(ImageDataModule):
    """Scenes in batches; see `ScenesDataset` for what a sample holds and docs/scenes.md for examples.

    Batches are dicts. "image", "label", "mask", "depth", "instances", "clip" and "clip_instances" are stacked; "boxes",
    "box_labels", "box_visibility", "caption" and "questions" are lists with one entry per sample. So is "name", the
    number of the scene, in validation and test.
    """

    list_fields: ClassVar[frozenset[str]] = frozenset({"boxes", "box_labels", "box_visibility", "caption", "questions"})
    field_hints: ClassVar[dict[str, str]] = {field: f"add {field} to data.fields" for field in FIELDS}
    mask_names: ClassVar[list[str]] = ["background", *CLASS_NAMES]  # of the values of "mask"

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        train_length: int = 20000,
        val_length: int = 1000,
        test_length: int = 1000,
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
        fields: Sequence[str] = (),
        frames: int = 8,
        fresh_epochs: bool = True,
        max_objects: int = MAX_OBJECTS,
        positions: bool = False,
    ) -> None:
        """
        Args:
            size: height and width in pixels, or one number for a square.
            train_length: training scenes per epoch.
            val_length: validation scenes.
            test_length: test scenes.
            batch_size: samples per batch and process.
            num_workers: worker processes per loader; 0 renders in the main process.
            seed: seed of the scenes and of their order, >= 0; the splits share no scene.
            fields: what a sample holds besides "image" and "label".
            frames: number of frames of a clip.
            fresh_epochs: whether every training epoch has new scenes; False repeats those of the first epoch.
            max_objects: most objects of a scene, 1 to 5, the nearest ones; with 1 only the one that "label" names.
            positions: whether captions and facts say where the objects are, too.

        Raises:
            ValueError: if an argument is out of range or a field is unknown.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.size = size
        self.lengths = {"train": train_length, "val": val_length, "test": test_length}
        self.fields = tuple(fields)
        self.frames = frames
        self.fresh_epochs = fresh_epochs
        self.max_objects, self.positions = max_objects, positions
        self.class_names = list(CLASS_NAMES)
        for split in SPLITS:
            self.make_dataset(split)  # checks the arguments now

    @property
    def repeats_samples(self) -> bool:
        return not self.fresh_epochs

    def make_dataset(self, split: str) -> ScenesDataset:
        return ScenesDataset(
            self.seed,
            self.lengths[split],
            self.size,
            self.fields,
            stream=SPLITS.index(split),
            frames=self.frames,
            fresh_epochs=self.fresh_epochs and split == "train",
            named=split != "train",
            max_objects=self.max_objects,
            positions=self.positions,
        )


collate_scenes = partial(collate, list_fields=Scenes.list_fields)  # for loaders of `ScenesDataset` without `Scenes`


def _boxes(rendering: Rendering) -> dict[str, torch.Tensor]:
    visible = rendering.visibility > 0
    labels = np.array([o.shape for o in rendering.scene.objects], dtype=np.int64)
    return {
        "boxes": torch.from_numpy(rendering.boxes[visible]),
        "box_labels": torch.from_numpy(labels[visible]),
        "box_visibility": torch.from_numpy(rendering.visibility[visible]),
    }
