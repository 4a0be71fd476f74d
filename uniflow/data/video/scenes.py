"""Rendered scenes in motion."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar

from torch.utils.data import Dataset

from uniflow.data.base import SPLITS
from uniflow.data.scenes import Scenes
from uniflow.data.video.cutting import collate_clips


class SceneClips(Scenes):
    """Moving scenes; a batch holds all frames of its clips, clip after clip, as that of `ClipFolder` does.

    The objects of a scene move and turn with the speeds that the scene was drawn with, and bounce off the frame's
    edges; light, background and grain stand still. So a clip is a function of (seed, split, number), and what does not
    move is equal in all frames to the last bit. "label" is the shape of the scene's main object, for every frame.
    """

    field_hints: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        length: int = 8,
        train_length: int = 20000,
        val_length: int = 64,
        test_length: int = 64,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        fresh_epochs: bool = True,
    ) -> None:
        """
        Args:
            size: height and width in pixels, or one number for a square.
            length: frames T of a clip.
            train_length: training clips per epoch.
            val_length: validation clips.
            test_length: test clips.
            batch_size: clips per batch and process.
            num_workers: worker processes per loader; 0 renders in the main process.
            seed: seed of the scenes and of their order, >= 0; the splits share no scene.
            fresh_epochs: whether every training epoch has new scenes.

        Raises:
            ValueError: if an argument is out of range.
        """
        lengths: dict[str, Any] = dict(
            zip((f"{split}_length" for split in SPLITS), (train_length, val_length, test_length), strict=True)
        )
        loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "seed": seed}
        super().__init__(size, **lengths, **loading, fields=("clip",), frames=length, fresh_epochs=fresh_epochs)

    @cached_property
    def collate(self) -> Callable[[list[Any]], Any]:
        return partial(collate_clips, list_fields=self.list_fields)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "length": self.frames}

    def make_dataset(self, split: str) -> Dataset:  # type: ignore[override]
        return _Clips(super().make_dataset(split))


class _Clips(Dataset):
    """The clips of a dataset of scenes as images of four dimensions."""

    def __init__(self, scenes: Dataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.scenes[index]
        kept = {name: sample[name] for name in ("label", "name") if name in sample}
        return {"image": sample["clip"], **kept}
