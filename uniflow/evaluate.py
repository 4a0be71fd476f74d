"""Reconstruction under the evaluation protocol: the same code in validation, in `uniflow test` and on a folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from uniflow.data.base import ImageDataModule, ResumableDataLoader
from uniflow.data.folder import list_images
from uniflow.data.reading import ImageReadError, read_image
from uniflow.data.transforms import CenterCrop
from uniflow.gallery import SHOWN, WorstImages
from uniflow.metrics import (
    Evaluation,
    Protocol,
    fingerprint,
    image_digests,
    noise_for,
    patch_means,
    psnr,
    slice_means,
    write_table,
)
from uniflow.tokenizer import Tokenizer


def decodings(
    tokenizer: Tokenizer, latents: Tensor, digests: Sequence[str], steps: Sequence[int], noise_seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Decode `latents` (B, C, h, w) with each number of `steps`.

    The noise belongs to each image, so a reconstruction does not depend on the batch or the process it is in.

    Yields:
        A suffix for metrics' names ("" for the first, "_steps4" for further ones), and the images in [0, 1], float32.
    """
    p = tokenizer.patch_size
    shape = (3, latents.shape[-2] * p, latents.shape[-1] * p)
    noise = noise_for(digests, shape, noise_seed).to(latents.device)
    for count in steps:
        suffix = "" if count == steps[0] else f"_steps{count}"
        yield suffix, tokenizer.decode(latents, steps=count, noise=noise).float()


def judge_batch(
    evaluation: Evaluation,
    tokenizer: Tokenizer,
    images: Tensor,
    latents: Tensor,
    steps: Sequence[int] = (1,),
    names: Sequence[str] | None = None,
) -> Tensor:
    """Decode and judge one batch.

    Args:
        evaluation: takes the numbers; the batch becomes its current one.
        tokenizer: its decoder paints.
        images: the originals (B, 3, H, W), uint8 or float in [0, 1].
        latents: what the tokenizer made of them.
        steps: numbers of sampler steps to judge.
        names: file names or the like.

    Returns:
        What the first number of steps painted, (B, 3, H, W) in [0, 1], float32.
    """
    originals = images if images.is_floating_point() else images.float() / 255
    height, width = images.shape[-2:]
    digests = image_digests(images)
    evaluation.add_originals(originals, digests, names)
    painted = []
    for suffix, decoded in decodings(tokenizer, latents, digests, steps, evaluation.protocol.noise_seed):
        painted.append(decoded[..., :height, :width])
        evaluation.add(painted[-1], suffix)
    # What the coarsest picture of the same grid reaches: each patch painted in its mean colour.
    coarse = patch_means(tokenizer.pad(originals), tokenizer.patch_size)[..., :height, :width]
    evaluation.add_values("psnr_patch_mean", psnr(coarse, originals))
    return painted[0]


def evaluation_batches(
    default_size: int,
    images: Sequence[Path] | None = None,
    data: ImageDataModule | None = None,
    size: int | None = None,
    crop: float = 1.0,
    batch_size: int = 16,
    num_workers: int = 2,
) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
    """What tools judge on: pictures, or a data module's test split.

    Args:
        default_size: `size` where none is given.
        images: pictures, or folders of them.
        data: a data module in place of pictures; its own crops and batches are used.
        size: side in pixels of the pictures' central crop.
        crop: share of the resized short side that the crop keeps.
        batch_size: pictures at a time.
        num_workers: processes that read pictures.

    Returns:
        Batches, dicts with "image" (B, 3, H, W) and mostly "name"; and the crops for the protocol's fingerprint.

    Raises:
        ValueError: if neither pictures nor data are named, or both are, or a picture is missing.
    """
    if (data is None) == (not images):
        raise ValueError("name what to judge on: either --images FOLDER or --data configs/data/scenes.yaml")
    if data is not None:
        return data.test_dataloader(), data.crops()
    pictures = _Pictures(images or [], CenterCrop(size or default_size, crop))
    loader = ResumableDataLoader(pictures, batch_size, num_workers=num_workers, collate_fn=pictures.collate)
    return loader, {"size": size or default_size, "center_crop": crop}


def evaluate(
    tokenizer: str,
    images: list[Path] | None = None,
    data: ImageDataModule | None = None,
    out: Path | None = None,
    size: int | None = None,
    crop: float = 1.0,
    steps: list[int] | None = None,
    batch_size: int = 16,
    num_workers: int = 2,
    protocol: Protocol | None = None,
    slices: bool = False,
    worst: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Judge a tokenizer by the evaluation protocol, on pictures or a data module's test split.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or a hub id.
        images: pictures, or folders of them.
        data: a data module in place of pictures, such as configs/data/scenes.yaml; its own crops and batches are used.
        out: folder for `results.json`, `images.csv` with one row a picture, `slices.csv` and `worst.png`; none by
            default.
        size: side in pixels of the pictures' central crop; by default the size that the encoder was pretrained at.
        crop: share of the resized short side that the crop keeps.
        steps: numbers of sampler steps; 1 by default.
        batch_size: pictures at a time; the numbers do not depend on it.
        num_workers: processes that read pictures.
        protocol: what to compute.
        slices: whether to print the numbers of slices of the pictures, too: of little and of much texture, of each
            folder, and so on.
        worst: how many pictures `worst.png` shows for PSNR and for SSIM; 0 is no such file.
        device: where to compute; auto takes a GPU if there is one.

    Raises:
        ValueError: if neither pictures nor data are named, or both are, or none can be read.
    """
    if worst < 0:
        raise ValueError(f"worst is a number of pictures, 0 or more, not {worst}")
    model = Tokenizer.from_pretrained(tokenizer)
    batches, crops = evaluation_batches(
        model.encoder.spec.image_size, images, data, size, crop, batch_size, num_workers
    )
    place = pick_device(device)
    model.to(place)
    counts = tuple(steps or (1,))
    evaluation = Evaluation(protocol or Protocol())
    lowest = [metric for metric in SHOWN if metric in evaluation.protocol.images]
    gallery = WorstImages(worst, lowest) if worst and out is not None else None
    for batch in batches:
        with torch.inference_mode():
            pixels = batch["image"].to(place)
            painted = judge_batch(evaluation, model, pixels, model.encode(pixels), counts, batch.get("name"))
        if gallery is not None:
            gallery.update(evaluation.rows[-len(pixels) :], pixels, painted)
    if not evaluation.rows:
        raise ValueError("none of the pictures can be read")
    numbers = evaluation.compute()
    settings = evaluation.settings(**crops, steps=list(counts), precision="32-true")
    _print(numbers, settings)
    if slices:
        print_rows(slice_means(evaluation.rows), f"slices of {settings['num_images']} images")
    print(f"protocol {fingerprint(settings)}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results = {**numbers, "protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        write_table(evaluation.rows, out / "images.csv")
        write_table(slice_means(evaluation.rows), out / "slices.csv")
        if gallery is not None and (picture := gallery.picture()) is not None:
            picture.save(out / "worst.png")


def pick_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device that an option `device` stands for; "auto" is a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class _Pictures(Dataset):
    """Image files, cropped for evaluation; one that cannot be read is left out and named.

    A picture's name is its path from the innermost folder that all are in.
    """

    def __init__(self, paths: Sequence[Path], crop: CenterCrop) -> None:
        if missing := [path for path in paths if not path.exists()]:
            raise ValueError(f"no such picture or folder: {missing[0]}")
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
            return {"image": self.crop(read_image(file)), "name": name}
        except ImageReadError as error:
            print(f"skipped {error}", file=sys.stderr)
            return None

    @staticmethod
    def collate(samples: list[dict[str, Any] | None]) -> dict[str, Any] | None:
        readable = [sample for sample in samples if sample is not None]
        return default_collate(readable) if readable else None


def _print(numbers: dict[str, float], settings: dict[str, Any]) -> None:
    table = Table(title=f"{settings['num_images']} images")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


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
