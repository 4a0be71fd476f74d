"""`uniflow pack`: a folder of images into WebDataset shards."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import webdataset as wds
from PIL import Image
from torch import Tensor

from uniflow.core.files import printable, read_bytes
from uniflow.data.images.captions import beside, read_beside
from uniflow.data.images.folder import ImageFolder
from uniflow.data.images.reading import MAX_BYTES, MAX_PIXELS, ImageReadError, read_image
from uniflow.data.images.shard_lists import INDEX
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.sampler import mix_seed

Format = Literal["jpg", "png"]


@dataclass(frozen=True)
class _Item:
    """One image file on its way into a split."""

    split: str
    path: Path
    name: str
    label: int | None


@dataclass(frozen=True)
class _Cut:
    """What is done to each image; the options of `pack` of the same names."""

    size: int | None
    crops_per_image: int | None
    crop_size: int
    format: Format
    quality: int
    seed: int
    max_pixels: int
    captions: bool

    def __call__(self, item: _Item) -> tuple[_Item, list[dict[str, Any]], str | None]:
        """The item, its samples as fields of a tar file, and the reason if there are none."""
        try:
            image = read_image(item.path, item.name, max_pixels=self.max_pixels)
            self._check_enlarged(item, image)
            caption = self._caption(item)
        except ImageReadError as error:
            return item, [], error.reason
        fields: dict[str, Any] = caption if item.label is None else {"cls": str(item.label), **caption}
        if self.size is None and self.crops_per_image is None:
            suffix = item.path.suffix.lower().removeprefix(".")
            return item, [{suffix: read_bytes(item.path, MAX_BYTES), "json": {"name": item.name}, **fields}], None
        if self.size is not None and min(image.shape[-2:]) > self.size:
            image = resize_short_side(image, self.size)
        if self.crops_per_image is None:
            return item, [{self.format: self._encode(image), "json": {"name": item.name}, **fields}], None
        if min(image.shape[-2:]) < self.crop_size:
            image = resize_short_side(image, self.crop_size)
        samples = []
        for top, left in self._places(item, image.shape[-2], image.shape[-1]):
            crop = image[:, top : top + self.crop_size, left : left + self.crop_size]
            origin = {"name": item.name, "top": top, "left": left}
            samples.append({self.format: self._encode(crop), "json": origin, **fields})
        return item, samples, None

    def _caption(self, item: _Item) -> dict[str, bytes]:
        """The text file beside an image, byte for byte; whoever trains says whether it is a caption."""
        path = str(item.path)
        if not self.captions or not os.path.lexists(beside(path, "txt")):
            return {}
        return {"txt": read_beside(path, item.name, "txt")}

    def _check_enlarged(self, item: _Item, image: Tensor) -> None:
        """Refuse a strip that would become huge if its short side were enlarged to a crop's."""
        height, width = image.shape[-2:]
        factor = self.crop_size / min(height, width) if self.crops_per_image is not None else 1.0
        if factor > 1 and height * width * factor**2 > self.max_pixels:
            raise ImageReadError(
                item.name,
                f"{width} x {height} pixels would be enlarged to more than {self.max_pixels:,} in all (max_pixels)",
            )

    def _places(self, item: _Item, height: int, width: int) -> list[tuple[int, int]]:
        """Upper left corners of the crops: random in training, of a grid without overlap otherwise."""
        assert self.crops_per_image is not None
        side = self.crop_size
        chance = random.Random(f"{self.seed} {item.name}")
        if item.split == "train":
            return [
                (chance.randrange(height - side + 1), chance.randrange(width - side + 1))
                for _ in range(self.crops_per_image)
            ]
        top, left = height % side // 2, width % side // 2
        grid = [(y, x) for y in range(top, height - side + 1, side) for x in range(left, width - side + 1, side)]
        return sorted(chance.sample(grid, min(self.crops_per_image, len(grid))))

    def _encode(self, image: Tensor) -> bytes:
        file = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if self.format == "jpg":
            picture.save(file, "JPEG", quality=self.quality, subsampling=0 if self.quality >= 95 else -1)
        else:
            picture.save(file, "PNG")
        return file.getvalue()


def pack(
    source: Path,
    out: Path,
    shard_size: int = 1000,
    size: int | None = None,
    crops_per_image: int | None = None,
    crop_size: int = 256,
    format: Format = "jpg",
    quality: int = 95,
    hold_out: list[str] | float = 0.0,
    validation: list[str] | float = 0.0,
    labels: bool | None = None,
    seed: int = 0,
    num_workers: int = 0,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    captions: bool = True,
) -> dict[str, Any]:
    """Pack a folder of images into the shards train-000000.tar, val-..., test-... and an index.json.

    The folders `train`, `val` and `test` of the source and class subfolders are taken as `ImageFolder` takes them.
    Without `size` and `crops_per_image` the files go in as they are. A file `x.txt` beside `x.jpg`, which as a rule is
    its caption, goes with it and with each of its crops. Unreadable files are left out and named in the index. The
    order is shuffled, and the same call writes the same bytes.

    Args:
        source: folder of images.
        out: folder for the shards.
        shard_size: most samples in a shard.
        size: shrink larger images to this short side in pixels, and encode them anew.
        crops_per_image: cut this many square crops out of each image: at random places for training, without overlap
            otherwise (fewer, if they do not fit).
        crop_size: side of the crops in pixels; smaller images are enlarged to it.
        format: how new images are encoded: jpg or png.
        quality: JPEG quality of new images, 1 to 100; from 95 on the colour is kept at full resolution.
        hold_out: files (relative or base names) that go whole into the test shards, or the share of files that does.
        validation: files that go whole into the validation shards, or the share of files that does.
        labels: whether subfolders are classes; by default they are if all images lie in them.
        seed: seed of the order and of the random crops.
        num_workers: processes that read and encode; 0 does it in this one.
        overwrite: replace shards that are in `out`.
        max_pixels: images with more pixels, also after they are enlarged to a crop, are left out; at most 178,956,970.
        captions: whether text files beside the images go with them.

    Returns:
        The index: samples of each shard; samples, images and captions of each split; class names, held-out and skipped
        files, and these options.

    Raises:
        ValueError: if an option is out of range, the source holds no image, a file to hold out is not there, or
            `out` holds shards already.
    """
    for name, value in (("shard_size", shard_size), ("size", size), ("crops_per_image", crops_per_image)):
        if value is not None and value < 1:
            raise ValueError(f"pack: {name} must be at least 1, not {value}")
    if crop_size < 1 or not 1 <= quality <= 100 or num_workers < 0:
        raise ValueError("pack: crop_size must be at least 1, quality in 1 ... 100 and num_workers at least 0")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"pack: max_pixels must be in 1 ... {MAX_PIXELS}, not {max_pixels}")
    cut = _Cut(size, crops_per_image, crop_size, format, quality, seed, max_pixels, captions)
    items, class_names = _items(source, {"test": hold_out, "val": validation}, labels)
    random.Random(mix_seed(seed)).shuffle(items)
    _clear(out, overwrite)
    skipped: list[dict[str, str]] = []
    texts: Counter[str] = Counter()
    shards = _write(out, shard_size, _cut_all(items, cut, num_workers), skipped, texts)
    index: dict[str, Any] = {
        "shards": shards,
        "samples": _per_split(shards),
        "images": dict(Counter(item.split for item in items)),
        "captions": dict(texts),
        "class_names": class_names,
        "held_out": sorted(item.name for item in items if item.split == "test"),
        "skipped": sorted(skipped, key=lambda entry: entry["name"]),
        "options": {**asdict(cut), "shard_size": shard_size},
    }
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    if not index["samples"].get("train"):
        raise ValueError(f"pack: not one image of {source} can be read for training; {out / INDEX} says why")
    samples = ", ".join(f"{number} {split}" for split, number in sorted(index["samples"].items()))
    with_text = f", {sum(texts.values())} with the text beside it" if any(texts.values()) else ""
    packed = len(items) - len(skipped)
    print(f"packed {packed} images as {samples} samples{with_text} into {out}; {len(skipped)} skipped")
    return index


def _items(
    source: Path, asked: dict[str, list[str] | float], labels: bool | None
) -> tuple[list[_Item], list[str] | None]:
    for split, value in asked.items():
        if not isinstance(value, list) and not 0 <= value < 1:
            raise ValueError(f"pack: the share of files for the {split} shards must be in [0, 1), not {value}")
    shares = {split: value if isinstance(value, int | float) else 0.0 for split, value in asked.items()}
    folder = ImageFolder(str(source), val_fraction=shares["val"], test_fraction=shares["test"], labels=labels)
    splits = folder.split_files()
    class_names = folder.class_names
    moved: dict[str, str] = {}
    for split, wanted in asked.items():
        if not isinstance(wanted, list):
            continue
        for name in wanted:
            matches = [n for n in splits["train"][1] if n == name or n.rsplit("/", 1)[-1] == name]
            if not matches:
                raise ValueError(f"pack: {name!r}, to be put into the {split} shards, is not in {source}")
            moved.update(dict.fromkeys(matches, split))
    numbers = {name: i for i, name in enumerate(class_names or [])}
    items = []
    for split, (root, names) in splits.items():
        for name in names:
            label = numbers[printable(name.split("/", 1)[0])] if class_names is not None else None
            target = moved.get(name, split) if split == "train" else split
            items.append(_Item(target, root / name, printable(name), label))
    if not items:
        raise ValueError(f"pack: {source} holds no images")
    return items, class_names


def _clear(out: Path, overwrite: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    old = [*out.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"), *out.glob(INDEX)]
    if old and not overwrite:
        raise ValueError(f"pack: {out} holds {old[0].name} already; choose another folder or set overwrite")
    for path in old:
        path.unlink()


def _cut_all(items: list[_Item], cut: _Cut, num_workers: int) -> Iterator[Any]:
    if num_workers == 0:
        yield from map(cut, items)
        return
    with multiprocessing.Pool(num_workers, _begin_worker) as pool:
        yield from pool.imap(cut, items, chunksize=8)
        pool.close()  # workers end by themselves; killed as the block ends, they have been seen to hang
        pool.join()


def _begin_worker() -> None:
    """One thread; and a fork keeps no handler of its parent's, which may outlive the signal that ends it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _write(
    out: Path, shard_size: int, results: Iterable[Any], skipped: list[dict[str, str]], texts: Counter[str]
) -> dict[str, int]:
    """Write the samples in order; returns the number in each shard, adds to `skipped`, and counts those with a text."""
    writers: dict[str, wds.TarWriter] = {}
    numbers: Counter[str] = Counter()
    shards: dict[str, int] = {}
    try:
        for item, samples, reason in results:
            if reason is not None:
                skipped.append({"name": item.name, "reason": reason})
            for sample in samples:  # keys are numbers: a dot in a file's name would end the key there
                name = f"{item.split}-{numbers[item.split] // shard_size:06d}.tar"
                if name not in shards:
                    if item.split in writers:
                        writers[item.split].close()
                    # No time stamp, so that the same call writes the same bytes.
                    writers[item.split] = wds.TarWriter(str(out / name), encoder=True, mtime=0.0)
                    shards[name] = 0
                writers[item.split].write({"__key__": f"{numbers[item.split]:08d}", **sample})
                numbers[item.split] += 1
                texts[item.split] += "txt" in sample
                shards[name] += 1
    finally:
        for writer in writers.values():
            writer.close()
    return dict(sorted(shards.items()))


def _per_split(shards: dict[str, int]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for name, number in shards.items():
        totals[name.rsplit("-", 1)[0]] += number
    return dict(totals)
