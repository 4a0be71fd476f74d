"""`uniflow encode`: a tokenizer's latents of any data, computed once, for the training of generators."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from uniflow.core.atomic import replacing
from uniflow.core.imports import class_path
from uniflow.data import ImageDataModule, ImageFolder
from uniflow.data.base import ResumableDataLoader
from uniflow.data.latents import (
    ENCODED,
    FORMAT,
    INDEX,
    KIND,
    read_index,
    read_shard_head,
    shard_path,
    write_shard,
)
from uniflow.data.sampler import SampleIndex
from uniflow.generators.cached import latent_identity
from uniflow.generators.model import check_tokenizer
from uniflow.tokenizer import Tokenizer
from uniflow.tools.common import check_numbers, pick_device

Sample = list[dict[str, Any]]  # one for each crop


def encode(
    *,
    tokenizer: str,
    out: Path,
    images: Path | None = None,
    data: ImageDataModule | None = None,
    dtype: Literal["float16", "bfloat16"] = "float16",
    flips: bool = False,
    crops: int = 0,
    size: int | None = None,
    shard_size: int = 1024,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write the normalised latents of training and validation images, to train generators on.

    A call that was killed goes on where it stopped when it is made again. Started by torchrun, each process encodes its
    share. Numbers and texts of a sample, such as "label" and "caption", are kept.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or a hub id; with latent statistics.
        out: folder for the shards and their index.json.
        images: a folder of images, taken as `ImageFolder` takes it.
        data: a data module instead of a folder, such as configs/data/scenes.yaml; its own crops are used.
        dtype: type that the latents are stored in.
        flips: whether to keep the mirror image of each training image or crop, too.
        crops: random crops of each training image, as its data module draws them in the first epochs; 0 is one view
            without augmentation, as in evaluation.
        size: side in pixels that the images of a folder are cropped to; by default the size that the encoder was
            pretrained at.
        shard_size: samples in a file.
        batch_size: images at a time.
        device: where to compute; auto takes a GPU if there is one.

    Raises:
        ValueError: if an option is out of range, the tokenizer has no statistics, or `out` was begun with other
            options.
    """
    check_numbers(size, batch_size=batch_size)
    if (data is None) == (images is None):
        raise ValueError("name what to encode: either --images FOLDER or --data configs/data/scenes.yaml")
    if crops < 0 or shard_size < 1:
        raise ValueError(f"--crops must be at least 0 and --shard_size at least 1, got {crops} and {shard_size}")
    picked = pick_device(device)
    model = Tokenizer.from_pretrained(tokenizer)
    check_tokenizer(model, f"--tokenizer {tokenizer}")
    if data is None:
        assert images is not None
        data = ImageFolder(str(images), size or model.encoder.spec.image_size)
    data.setup()
    settings = {
        "format": FORMAT,
        "kind": KIND,
        "tokenizer": latent_identity(model),
        "dtype": dtype,
        "flips": flips,
        "crops": crops,
        "shard_size": shard_size,
        "data": _identity(data),
    }
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _begin(out, settings, rank)
    encoder = _Encoder(model.to(picked), picked, getattr(torch, dtype), batch_size)
    numbers = {}
    for split in ENCODED:
        job = _Job(data, split, out, crops if split == "train" else 0, flips and split == "train", shard_size)
        numbers[split] = job.run(encoder, rank, processes)
    if not _finish(out, settings, numbers, data.class_names):
        print(f"process {rank} has written its share of {out}")


def _identity(data: ImageDataModule) -> dict[str, Any]:
    """What a call that goes on has to have in common with the first one."""
    datasets = {split: data.datasets[split] for split in ENCODED}
    lengths = {s: None if isinstance(d, IterableDataset) else len(d) for s, d in datasets.items()}  # type: ignore[arg-type]
    # As JSON gives it back.
    return json.loads(json.dumps({"class": class_path(type(data)), **data.crops(), "seed": data.seed, **lengths}))


@dataclass
class _Encoder:
    """Images -> stored latents."""

    tokenizer: Tokenizer
    device: str
    dtype: torch.dtype
    batch_size: int

    @torch.inference_mode()
    def __call__(self, images: Tensor, flips: bool) -> Tensor:
        """(B, 3, H, W) -> (B, V, C, h, w), the flipped image's as the second view."""
        pixels = images.to(self.device)
        views = [pixels, pixels.flip(-1)] if flips else [pixels]
        stored = [self.tokenizer.encode(view, normalize=True).to(self.dtype).cpu() for view in views]
        return torch.stack(stored, dim=1)


@dataclass
class _Job:
    """One split."""

    data: ImageDataModule
    split: str
    out: Path
    crops: int
    flips: bool
    shard_size: int

    def run(self, encoder: _Encoder, rank: int, processes: int) -> int:
        """Write the shards of this process that are missing; returns the number of shards of all processes."""
        dataset = self.data.datasets[self.split]
        if isinstance(dataset, IterableDataset):
            shards = None
            samples: Iterator[tuple[int, Sample | None]] = self._stream()
        else:
            shards = -(-len(dataset) // self.shard_size)  # type: ignore[arg-type]
            missing = [n for n in range(rank, shards, processes) if not self._path(n).is_file()]
            samples = self._chosen(dataset, missing)
        last = -1
        for last, members in groupby(samples, lambda item: item[0] // self.shard_size):
            if last % processes == rank and not self._path(last).is_file():
                self._write(last, (sample for _, sample in members), encoder)
        return last + 1 if shards is None else shards

    def _path(self, number: int) -> Path:
        return shard_path(self.out, self.split, number)

    def _chosen(self, dataset: Dataset, shards: Sequence[int]) -> Iterator[tuple[int, Sample | None]]:
        """Number and sample of everything in the shards; None for what cannot be read."""
        numbers = [i for n in shards for i in range(n * self.shard_size, min((n + 1) * self.shard_size, len(dataset)))]  # type: ignore[arg-type]
        if self.split == "train" and not self.crops:
            dataset = self.data.make_plain_train_dataset()
        views = _Views(dataset, self.crops)
        loader = DataLoader(views, batch_size=None, sampler=numbers, num_workers=self.data.num_workers)
        return zip(numbers, loader, strict=True)

    def _stream(self) -> Iterator[tuple[int, Sample | None]]:
        """Number and sample of a stream, in which what cannot be read has no number."""
        if self.crops:
            raise ValueError(
                f"--crops needs data whose samples have numbers, such as ImageFolder; {type(self.data).__name__} is a "
                "stream"
            )
        train = self.split == "train"
        dataset = self.data.make_plain_train_dataset() if train else self.data.datasets[self.split]
        # With more workers the order would depend on their number.
        batches = ResumableDataLoader(dataset, batch_size=None, num_workers=min(1, self.data.num_workers))
        found = (sample for batch in batches for sample in _unbatched(batch))
        return enumerate([sample] for sample in found)

    def _write(self, number: int, samples: Iterable[Sample | None], encoder: _Encoder) -> None:
        start, skipped = time.perf_counter(), 0
        latents: list[Tensor] = []
        fields: dict[str, list[list[Any]]] = {}
        crops, rest = max(1, self.crops), iter(samples)
        while chunk := list(islice(rest, max(1, encoder.batch_size // crops))):
            readable = [sample for sample in chunk if sample is not None]
            skipped += len(chunk) - len(readable)
            if readable:
                encoded = encoder(_stack([view["image"] for sample in readable for view in sample]), self.flips)
                latents.append(encoded.unflatten(0, (-1, crops)).flatten(1, 2))
            for sample in readable:
                for name in _kept(sample):
                    fields.setdefault(name, []).append([view[name] for view in sample])
        if not latents:
            raise ValueError(f"not one image of {self._path(number).name} can be read; see the lines above")
        whole = torch.cat(latents)
        if wrong := [name for name, rows in fields.items() if len(rows) != len(whole)]:
            raise ValueError(f"only some of the {self.split} samples have the field {wrong[0]!r}")
        write_shard(self._path(number), whole, fields, skipped)
        speed = whole.shape[0] * whole.shape[1] / (time.perf_counter() - start)
        left_out = f", {skipped} unreadable" if skipped else ""
        print(f"{self._path(number).name}: {len(whole)} samples{left_out}, {speed:.0f} images/s", flush=True)


class _Views(Dataset):
    """All crops of a sample: those of the first epochs, or one in evaluation."""

    def __init__(self, dataset: Dataset, crops: int) -> None:
        self.dataset, self.crops = dataset, crops

    def __getitem__(self, index: int) -> Sample | None:
        views = [self.dataset[SampleIndex(index, epoch)] for epoch in range(max(1, self.crops))]
        return None if any(view is None for view in views) else views


def _unbatched(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in range(len(batch["image"])):
        values = {name: values[row] for name, values in batch.items()}
        yield {name: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for name, v in values.items()}


def _kept(sample: Sample) -> list[str]:
    """Names of the fields that are numbers or texts, which is what conditions read."""
    return [name for name, value in sample[0].items() if isinstance(value, int | str)]


def _stack(images: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(image.shape[-2:]) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"the images have different sizes, {shapes[0]} and {shapes[1]}; latents need one size")
    return torch.stack(list(images))


def _begin(out: Path, settings: dict[str, Any], rank: int) -> None:
    """Write the index without its shards, or refuse the options if there is one with others."""
    if (out / INDEX).exists():
        begun = read_index(out)
        if other := [name for name, value in settings.items() if begun.get(name) != value]:
            raise ValueError(
                f"{out} holds latents that were made with another {other[0]} ({_short(begun.get(other[0]))}, now "
                f"{_short(settings[other[0]])}); choose another folder, or delete it"
            )
    elif rank == 0:
        with replacing(out / INDEX) as new:
            new.write_text(json.dumps(settings, indent=1) + "\n")


def _short(value: Any) -> str:
    text = json.dumps({k: v for k, v in value.items() if k != "statistics"} if isinstance(value, dict) else value)
    return text if len(text) < 200 else text[:200] + "..."


def _finish(out: Path, settings: dict[str, Any], numbers: dict[str, int], class_names: list[str] | None) -> bool:
    """Complete the index if all processes have written their shards; returns whether they have."""
    paths = {split: [shard_path(out, split, n) for n in range(count)] for split, count in numbers.items()}
    if not all(path.is_file() for split in paths.values() for path in split):
        return False
    heads = {split: [read_shard_head(path) for path in files] for split, files in paths.items()}
    shapes = {tuple(shape[2:]) for split in heads.values() for shape, _ in split}
    if len(shapes) != 1:
        raise ValueError(f"the latents in {out} have different shapes, {sorted(shapes)}; encode images of one size")
    (shape,) = shapes
    index = {
        **settings,
        "grid": list(shape[1:]),
        "class_names": None if class_names is None else list(class_names),
        "shards": {split: [shape[0] for shape, _ in found] for split, found in heads.items()},
        "skipped": {split: sum(skipped for _, skipped in found) for split, found in heads.items()},
    }
    new = out / f"{INDEX}.{os.getpid()}.part"  # two processes may end at once
    new.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(new, out / INDEX)
    counted = ", ".join(f"{sum(counts):,} {split}" for split, counts in index["shards"].items())
    size = sum(path.stat().st_size for files in paths.values() for path in files)
    print(f"{counted} samples, latents {tuple(shape)} in {settings['dtype']}, {size / 1e6:,.1f} MB: {out}")
    return True
