"""Buckets: one size a batch, the same on all processes and after a resume; every image near its own aspect ratio."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import project, uniflow  # noqa: F401
from PIL import Image

from uniflow.data import ImageDataModule, ImageFolder, WebDataset
from uniflow.data.images.buckets import Buckets, read_sizes
from uniflow.tools.pack import pack

SIZES: list[int | tuple[int, int]] = [16, (8, 24), (24, 8)]
SHAPES = {"wide": (12, 36), "tall": (36, 12), "square": (20, 20)}  # heights and widths of the files
Seen = list[tuple[tuple[int, int], list[int]]]


def write_images(root: Path, counts: dict[str, int]) -> Path:
    """Pictures of one colour each: red is the file's number, green tells the shape."""
    root.mkdir(parents=True)
    number = 0
    for kind, count in counts.items():
        height, width = SHAPES[kind]
        for _ in range(count):
            colour = (number, list(SHAPES).index(kind), 0)
            Image.new("RGB", (width, height), colour).save(root / f"{number * 37 % 101:03d}.png")
            number += 1
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("buckets")
    write_images(root / "images" / "train", {"wide": 14, "tall": 11, "square": 15})
    for split in ("val", "test"):
        write_images(root / "images" / split, {"wide": 4})
    return root / "images"


class AsRank:
    """A data module that takes itself for one of several processes."""

    rank = 0
    world_size = 1


class Folder(AsRank, ImageFolder):
    pass


class Shards(AsRank, WebDataset):
    pass


def folder(root: Path, rank: int = 0, world_size: int = 1, **kwargs: Any) -> Folder:
    settings: dict[str, Any] = {"size": 16, "batch_size": 4, "num_workers": 0, "buckets": SIZES}
    data = Folder(str(root), **{**settings, **kwargs})
    data.rank, data.world_size = rank, world_size
    return data


def read(data: ImageDataModule) -> Seen:
    """The size of every training batch, and the numbers of its files."""
    batches = [batch["image"] for batch in data.train_dataloader()]
    return [(tuple(images.shape[2:]), images[:, 0, 0, 0].tolist()) for images in batches]


def sizes(seen: Seen) -> list[tuple[int, int]]:
    return [size for size, _ in seen]


def test_sizes_are_a_function_of_seed_epoch_and_batch() -> None:
    buckets = Buckets(SIZES, seed=1)
    assert buckets.sizes == [(16, 16), (8, 24), (24, 8)]
    assert buckets.largest_side == 24

    def drawn(seed: int, epoch: int) -> list[tuple[int, int]]:
        return [Buckets(SIZES, seed).size(epoch, batch) for batch in range(300)]

    assert min(Counter(drawn(1, 0)).values()) > 70
    assert drawn(1, 0) == [buckets.size(0, batch) for batch in range(300)]
    assert drawn(1, 0) != drawn(2, 0)
    assert drawn(1, 0) != drawn(1, 1)


@pytest.mark.parametrize("bad", [[], [16, (16, 16)], [0], [(8, -8)]])
def test_sizes_that_make_no_sense_are_refused(bad: list[Any]) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Buckets(bad)


def test_aspect_needs_buckets(images: Path) -> None:
    with pytest.raises(ValueError, match="needs buckets"):
        ImageFolder(str(images), bucket_by="aspect")


def test_an_image_goes_to_the_nearest_aspect_ratio() -> None:
    buckets = Buckets([(16, 16), (8, 16), (16, 8), (32, 32)])
    assert buckets.aspects.tolist() == [0.5, 1.0, 2.0]
    images = np.array([[10, 10], [10, 13], [10, 15], [15, 10], [13, 10], [1, 100], [100, 1]])
    assert buckets.nearest_aspect(images).tolist() == [1, 1, 2, 0, 1, 2, 0]
    assert {buckets.size(0, batch, 1) for batch in range(30)} == {(16, 16), (32, 32)}
    assert {buckets.size(0, batch, 0) for batch in range(30)} == {(16, 8)}


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = ["a.jpg", "turned.jpg", "broken.jpg", "missing.jpg"]
    assert read_sizes(tmp_path, names).tolist() == [[20, 30], [30, 20], [1, 1], [1, 1]]


def test_random_sizes_leave_the_order_as_it_is(images: Path) -> None:
    seen = read(folder(images))
    assert len(seen) == 10
    assert len(set(sizes(seen))) > 1
    assert [numbers for _, numbers in seen] == [numbers for _, numbers in read(folder(images, buckets=None))]
    assert set(sizes(read(folder(images, buckets=None)))) == {(16, 16)}
    assert seen == read(folder(images, num_workers=2))
    assert seen != read(folder(images, seed=1))
    for batch in folder(images).val_dataloader():
        assert batch["image"].shape[2:] == (16, 16)


@pytest.mark.parametrize("bucket_by", ["random", "aspect"])
def test_a_replacement_has_the_size_of_its_batch(tmp_path: Path, bucket_by: str) -> None:
    root = write_images(tmp_path / "train", {"wide": 8, "tall": 8, "square": 8}).parent
    for split in ("val", "test"):
        write_images(root / split, {"wide": 1})
    for broken in sorted((root / "train").iterdir())[::6]:
        broken.write_bytes(b"no image")  # so it counts as a square
    seen = read(folder(root, bucket_by=bucket_by))
    assert len(seen) >= 4
    assert {len(numbers) for _, numbers in seen} == {4}
    assert len(set(sizes(seen))) > 1


@pytest.mark.parametrize("bucket_by", ["random", "aspect"])
def test_processes_have_the_same_sizes_and_other_images(images: Path, bucket_by: str) -> None:
    ranks = [read(folder(images, rank, 2, bucket_by=bucket_by)) for rank in range(2)]
    assert sizes(ranks[0]) == sizes(ranks[1])
    assert len(set(sizes(ranks[0]))) > 1
    numbers = [number for seen in ranks for _, batch in seen for number in batch]
    assert len(set(numbers)) == len(numbers) == 8 * len(ranks[0])
    alone = read(folder(images, batch_size=8, bucket_by=bucket_by))  # the same steps in one process
    assert [(size, sorted(n)) for size, n in alone] == [
        (size, sorted(a + b)) for (size, a), (_, b) in zip(*ranks, strict=True)
    ]


def test_batches_by_aspect(images: Path) -> None:
    data = folder(images, bucket_by="aspect", batch_size=3)
    loader = data.train_dataloader()
    kinds = {(8, 24): 0, (24, 8): 1, (16, 16): 2}
    counted: Counter[int] = Counter()
    for batch in loader:
        (kind,) = set(batch["image"][:, 1].flatten().tolist())
        assert kind == kinds[tuple(batch["image"].shape[2:])]
        counted[kind] += 1
    assert counted == {0: 4, 1: 3, 2: 5}  # 14, 11 and 15 images in batches of 3
    assert len(loader) == data.epoch_batches() == 12
    assert data.batches_left(3 * 5) == 7


@pytest.mark.parametrize("bucket_by", ["random", "aspect"])
def test_epochs_differ_and_a_resumed_one_goes_on(images: Path, bucket_by: str) -> None:
    whole = read(folder(images, bucket_by=bucket_by))
    later = []
    for epoch, batches in ((0, 4), (1, 0), (1, 3)):
        data = folder(images, bucket_by=bucket_by)
        data.load_state_dict({"epoch": epoch, "samples": 4 * batches, **data._settings()})
        later.append(read(data))
    assert later[0] == whole[4:]
    assert len(later[1]) == len(whole)
    assert later[1] != whole
    assert later[2] == later[1][3:]


def test_another_global_batch_by_aspect_is_said(images: Path) -> None:
    data = folder(images, bucket_by="aspect")
    state = {"epoch": 0, "samples": 8, **data._settings()}
    folder(images, 0, 2, bucket_by="aspect", batch_size=2).load_state_dict(state)  # 4 images a step as before
    with pytest.warns(UserWarning, match="by aspect .* 4 images a step, -> by aspect .* 6 images a step"):
        folder(images, bucket_by="aspect", batch_size=6).load_state_dict(state)


def test_images_without_a_full_batch_are_said(images: Path) -> None:
    with pytest.warns(UserWarning, match="11 training images are never seen.*fewer than the 12"):
        seen = read(folder(images, bucket_by="aspect", batch_size=12))
    assert sorted(sizes(seen)) == [(8, 24), (16, 16)]
    with pytest.raises(ValueError, match=r"no bucket has the 16 training images.*lower batch_size"):
        folder(images, bucket_by="aspect", batch_size=16).train_dataloader()


def test_shards(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path, shard_size=8)
    paths = [f"{tmp_path}/{split}-*.tar" for split in ("train", "val", "test")]

    def shards(rank: int = 0, world_size: int = 1, **kwargs: Any) -> Shards:
        data = Shards(*paths, size=16, buckets=SIZES, **{"batch_size": 4, "num_workers": 0, **kwargs})
        data.rank, data.world_size = rank, world_size
        return data

    seen = read(shards())
    assert sizes(seen) == [Buckets(SIZES).size(0, batch) for batch in range(10)]
    ranks = [read(shards(rank, 2)) for rank in range(2)]
    assert sizes(ranks[0]) == sizes(ranks[1]) == sizes(seen)[:5]
    assert ranks[0] != ranks[1]
    whole, data = read(shards(num_workers=2)), shards(num_workers=2)
    assert sizes(whole) == sizes(seen)
    data.load_state_dict({"epoch": 0, "samples": 12, **data._settings()})
    assert read(data) == whole[3:]
    for batch in shards().val_dataloader():
        assert batch["image"].shape[2:] == (16, 16)


RECORDER = '''
import json
from lightning.pytorch import Callback


class Recorder(Callback):
    """Writes the shape and the sum of every training batch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with open(f"{self.name}-{trainer.global_rank}.jsonl", "a") as file:
            print(json.dumps([list(batch["image"].shape), batch["image"].sum().item()]), file=file)
'''


def recorded(project: Path, name: str) -> list[Any]:  # noqa: F811
    return [json.loads(line) for line in (project / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def fit(uniflow: Callable[..., Any], project: Path, images: Path) -> Callable[..., list[Any]]:  # noqa: F811
    """`uniflow fit` with buckets, and what its first process recorded."""
    (project / "recorder.py").write_text(RECORDER)

    def call(run: str, *options: str) -> list[Any]:
        result = uniflow(
            "fit", "-c", "recipe.yaml", "--data", "ImageFolder", "--data.root", str(images), "--data.size", "16",
            "--data.buckets", "[16, [8, 24], [24, 8]]", "--data.num_workers", "0", "--data.batch_size", "4",
            "--trainer.callbacks+", "recorder.Recorder", "--trainer.callbacks.name", run, "--run", run,
            "--trainer.limit_val_batches", "0", *options,
        )  # fmt: skip
        assert result.code == 0, result.err
        return recorded(project, f"{run}-0")

    return call


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_fit_repeats_the_whole_one(fit: Callable[..., list[Any]]) -> None:
    options = ("--data.bucket_by", "aspect", "--trainer.max_steps", "6")
    stop = ("--trainer.callbacks+", "my_pkg.StopAt", "--trainer.callbacks.step", "2")
    whole = fit("whole", *options)
    assert len(whole) == 6
    assert len({tuple(shape[2:]) for shape, _ in whole}) == 3
    assert fit("part", *options, *stop) + fit("rest", *options, "--ckpt_path", "part/last.ckpt") == whole
    weights = [torch.load(f"{run}/last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "rest")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.filterwarnings("ignore")
def test_a_fit_of_two_processes(fit: Callable[..., list[Any]], project: Path) -> None:  # noqa: F811
    first = fit("two", "--trainer.max_steps", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
    second = recorded(project, "two-1")
    assert [shape for shape, _ in first] == [shape for shape, _ in second]
    assert len({tuple(shape) for shape, _ in first}) > 1
    assert first != second
