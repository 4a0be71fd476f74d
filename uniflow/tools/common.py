"""What several tools share: which images, which device, tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset, default_collate

from uniflow.core.numbers import MOST_STEPS
from uniflow.data.base import ImageDataModule, ResumableDataLoader
from uniflow.data.images.listing import list_images
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.images.transforms import CenterCrop
from uniflow.layers.cpu import onednn_is_faster, use_onednn
from uniflow.tokenizer import Tokenizer

LARGEST = 2**16  # pixels of a side, and images of a batch


def evaluation_batches(
    default_size: int,
    images: Sequence[Path] | None = None,
    data: ImageDataModule | None = None,
    size: int | None = None,
    crop: float = 1.0,
    batch_size: int = 16,
    num_workers: int = 2,
) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
    """What tools judge on: images, or a data module's test split.

    Args:
        default_size: `size` where none is given.
        images: image files, or folders of them.
        data: a data module instead of images; its own crops and batches are used.
        size: side in pixels of the images' central crop.
        crop: share of the resized short side that the crop keeps.
        batch_size: images at a time.
        num_workers: processes that read pictures.

    Returns:
        Batches, dicts with "image" (B, 3, H, W) and mostly "name"; and the crops for the protocol's fingerprint.

    Raises:
        ValueError: if neither images nor data are named, or both are, or an image is missing.
    """
    if (data is None) == (not images):
        raise ValueError("name what to judge on: either --images FOLDER or --data configs/data/scenes.yaml")
    if data is not None:
        return data.test_dataloader(), data.crops()
    pictures = Pictures(images or [], CenterCrop(size or default_size, crop))
    loader = ResumableDataLoader(pictures, batch_size, num_workers=num_workers, collate_fn=pictures.collate)
    return loader, {"size": size or default_size, "center_crop": crop}


def check_numbers(
    size: int | None = None,
    steps: Sequence[int] = (),
    batch_size: int = 1,
    num_workers: int = 0,
    smallest_size: int = 1,
) -> None:
    """Refuse numbers that no tool can use, before anything is computed.

    Raises:
        ValueError: naming the option, its value and its range.
    """
    ranges = [("size", size, smallest_size, LARGEST), ("batch_size", batch_size, 1, LARGEST)]
    ranges += [("num_workers", num_workers, 0, 1024), *(("steps", count, 1, MOST_STEPS) for count in steps)]
    for name, value, least, most in ranges:
        if value is not None and not least <= value <= most:
            raise ValueError(f"--{name} must lie between {least} and {most:,}, not {value}")


def pick_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device that an option `device` stands for; "auto" is a GPU if there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU that torch can use; leave it out, or use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_tokenizer(
    path: str | Path, device: Literal["auto", "cpu", "cuda"] = "cpu", fast_cpu: bool = True
) -> tuple[Tokenizer, str]:
    """A tokenizer in evaluation mode, ready to run on a device.

    Args:
        path: as for `Tokenizer.from_pretrained`.
        device: where it shall run; "auto" is a GPU if there is one.
        fast_cpu: on a CPU, whether to compute linear layers by oneDNN where that is faster
            (`uniflow.layers.cpu.onednn_is_faster`). Results differ in the last digits of float32.

    Returns:
        The tokenizer, and the device that it is on.
    """
    picked = pick_device(device)
    tokenizer = Tokenizer.from_pretrained(path)
    if fast_cpu and picked == "cpu" and onednn_is_faster():
        use_onednn(tokenizer)
    return tokenizer.to(picked), picked


class Pictures(Dataset):
    """Image files, cropped for evaluation or whole; one that cannot be read is left out and named.

    An image's name is its path from the innermost folder that all are in.
    """

    def __init__(self, paths: Sequence[Path], crop: CenterCrop | None) -> None:
        if missing := [path for path in paths if not path.exists()]:
            raise ValueError(f"no such image or folder: {missing[0]}")
        self.files = [f for path in paths for f in ([path / n for n in list_images(path)] if path.is_dir() else [path])]
        common = Path(os.path.commonpath([path.absolute() for path in paths]))
        self.root = common if common.is_dir() else common.parent
        self.crop = crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        file = self.files[index]
        try:
            name = file.absolute().relative_to(self.root).as_posix()
            image = read_image(file)
            return {"image": image if self.crop is None else self.crop(image), "name": name}
        except ImageReadError as error:
            print(f"skipped {error}", file=sys.stderr)
            return None

    @staticmethod
    def collate(samples: list[dict[str, Any] | None]) -> dict[str, Any] | None:
        readable = [sample for sample in samples if sample is not None]
        return default_collate(readable) if readable else None


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print dicts as a table; floats have four significant digits."""
    table = Table(title=title)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        number = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        table.add_row(*(f"{cell:#.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    # A file or a pipe has no width: rich would fold at 80.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
