"""Packing: what goes in comes out, held-out photographs stay out, the same call writes the same bytes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from uniflow.data.images.reading import read_image
from uniflow.data.images.webdataset import WebDataset
from uniflow.tools.pack import pack
from uniflow.tools.photos import PHOTOS, export_photos


def samples(folder: Path, split: str) -> list[dict[str, Any]]:
    found = []
    for shard in sorted(folder.glob(f"{split}-*.tar")):
        for sample in wds.tarfile_to_samples()([{"url": str(shard)}]):
            found.append({**sample, "shard": shard.name, "json": json.loads(sample["json"])})
    return found


def sources(folder: Path, split: str) -> set[str]:
    return {sample["json"]["name"] for sample in samples(folder, split)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures of random pixels with names in several formats, and one that is broken."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (40 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i:02d}.{('png', 'jpg', 'ppm', 'tif')[i % 4]}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


def test_files_go_in_as_they_are_and_come_out(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    index = pack(photos, out, shard_size=5, hold_out=["p03.tif", "p04.png"], validation=["p05.jpg"])
    assert index == json.loads((out / "index.json").read_text())
    assert index["samples"] == {"train": 9, "test": 2, "val": 1}
    assert index["shards"] == {"test-000000.tar": 2, "train-000000.tar": 5, "train-000001.tar": 4, "val-000000.tar": 1}
    assert [entry["name"] for entry in index["skipped"]] == ["broken.jpg"]
    assert index["skipped"][0]["reason"]
    assert index["held_out"] == ["p03.tif", "p04.png"]
    for split in ("train", "val", "test"):
        for sample in samples(out, split):
            source = photos / sample["json"]["name"]
            assert sample[source.suffix[1:]] == source.read_bytes()
    data = WebDataset(
        str(out / "train-*.tar"), str(out / "val-*.tar"), str(out / "test-*.tar"), size=32, batch_size=3, num_workers=0
    )
    data.setup()
    assert data.class_names is None
    assert len(data.train_dataloader()) == 3  # an epoch is the nine samples of the index
    assert [batch["image"].shape for batch in data.test_dataloader()] == [(2, 3, 32, 32)]


@pytest.mark.parametrize("hold_out", [["p01.jpg", "p06.ppm"], 0.3])
def test_held_out_photographs_never_appear_in_training(
    photos: Path, tmp_path: Path, hold_out: list[str] | float
) -> None:
    out = tmp_path / "shards"
    pack(photos, out, hold_out=hold_out, crops_per_image=6, crop_size=16, validation=0.2)
    train, val, test = (sources(out, split) for split in ("train", "val", "test"))
    assert train | val | test == {p.name for p in photos.iterdir()} - {"broken.jpg"}
    assert not train & test
    assert not train & val
    assert not val & test
    if isinstance(hold_out, list):
        assert test == set(hold_out)
    else:
        assert 1 <= len(test) <= 7


def test_crops_are_cut_out_of_the_photograph(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack(photos, out, hold_out=["p00.png", "p02.ppm"], crops_per_image=5, crop_size=16, format="png")
    train, test = samples(out, "train"), samples(out, "test")
    assert len(train) == 5 * 10
    assert len(test) == 5 * 2
    for sample in [*train, *test]:
        place = sample["json"]
        top, left = place["top"], place["left"]
        whole = read_image(photos / place["name"])
        assert torch.equal(read_image(sample["png"]), whole[:, top : top + 16, left : left + 16])
    corners = [(s["json"]["name"], s["json"]["top"], s["json"]["left"]) for s in test]
    assert len(set(corners)) == 10
    for name, top, left in corners:  # the crops of a held-out photograph do not overlap
        near = [c for c in corners if c[0] == name and abs(c[1] - top) < 16 and abs(c[2] - left) < 16]
        assert near == [(name, top, left)]


def test_images_are_shrunk_and_small_ones_enlarged_for_a_crop(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "a", size=20)
    assert {min(read_image(s["jpg"]).shape[1:]) for s in samples(tmp_path / "a", "train")} == {20}
    pack(photos, tmp_path / "b", crops_per_image=1, crop_size=100)
    assert {read_image(s["jpg"]).shape for s in samples(tmp_path / "b", "train")} == {(3, 100, 100)}
    pack(photos, tmp_path / "c", size=20, quality=30)
    assert sum(len(s["jpg"]) for s in samples(tmp_path / "c", "train")) < sum(
        len(s["jpg"]) for s in samples(tmp_path / "a", "train")
    )


def test_the_same_call_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    def written(name: str, **kwargs: Any) -> dict[str, bytes]:
        pack(photos, tmp_path / name, crops_per_image=3, crop_size=16, hold_out=0.3, **kwargs)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first = written("a")
    assert written("b") == first
    assert written("c", num_workers=2) == first
    assert written("d", seed=1)["train-000000.tar"] != first["train-000000.tar"]


def test_workers_end_though_the_process_handles_signals(photos: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as a fit has set it
    try:
        pack(photos, tmp_path / "a", num_workers=2)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_class_folders_become_labels(tmp_path: Path) -> None:
    for i in range(20):
        for name, value in (("dog", 200), ("cat", 50)):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), value).save(tmp_path / "in" / name / f"{i}.png")
    out = tmp_path / "shards"
    assert pack(tmp_path / "in", out, hold_out=0.3, validation=0.2)["class_names"] == ["cat", "dog"]
    data = WebDataset(*(str(out / f"{s}-*.tar") for s in ("train", "val", "test")), size=8, batch_size=4, num_workers=0)
    labels = []
    for batch in [*data.train_dataloader(), *data.test_dataloader()]:
        labels += batch["label"].tolist()
        assert batch["label"].tolist() == [int(image[0, 0, 0] > 100) for image in batch["image"]]
    assert data.class_names == ["cat", "dog"]
    assert set(labels) == {0, 1}


def test_what_cannot_be_packed_is_said_in_one_line(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"'none.png', to be put into the test shards"):
        pack(photos, out, hold_out=["none.png"])
    with pytest.raises(ValueError, match="is not a folder"):
        pack(tmp_path / "nowhere", out)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        pack(photos, out, hold_out=1.0)
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        pack(photos, out, shard_size=0)
    pack(photos, out)
    with pytest.raises(ValueError, match="set overwrite"):
        pack(photos, out)
    pack(photos, out, hold_out=["p00.png"], overwrite=True)
    assert sources(out, "test") == {"p00.png"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        pack(tmp_path / "empty", tmp_path / "out2")
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="can be read for training"):
        pack(tmp_path / "empty", tmp_path / "out2")


def test_odd_files_are_left_out_and_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for name in (b"a.jpg", b"a.png", b"a.depth.png", b"my.0.png", b"my.1.png", b"\xff.png", b"x/b.png"):
        path = Path(os.fsdecode(bytes(source) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (source / "x" / "loop").symlink_to(source)
    (source / "link.png").symlink_to("a.png")
    os.mkfifo(source / "pipe.png")
    (source / "zero.png").symlink_to("/dev/zero")
    with open(source / "sparse.png", "wb") as file:
        file.truncate(20 * 10**9)
    Image.new("1", (30000, 1)).save(source / "strip.png")
    Image.new("1", (200, 200)).save(source / "large.png")
    start = time.monotonic()
    options: dict[str, Any] = {"crops_per_image": 1, "crop_size": 64, "max_pixels": 30000}
    with pytest.warns(UserWarning, match="1 names are links"):
        index = pack(source, tmp_path / "out", **options)
    reasons = {entry["name"]: entry["reason"] for entry in index["skipped"]}
    assert set(reasons) == {"pipe.png", "zero.png", "sparse.png", "strip.png", "large.png"}
    assert "30000 x 1 pixels would be enlarged" in reasons["strip.png"]
    assert "200 x 200 pixels, more than" in reasons["large.png"]
    packed = {"a.jpg", "a.png", "a.depth.png", "my.0.png", "my.1.png", "\\udcff.png", "x/b.png"}
    assert sources(tmp_path / "out", "train") == packed
    assert len(samples(tmp_path / "out", "train")) == 7
    assert time.monotonic() - start < 20
    with pytest.raises(ValueError, match="max_pixels must be in"):
        pack(source, tmp_path / "out", max_pixels=0)


def test_the_packages_photographs_are_written(tmp_path: Path) -> None:
    written = export_photos(tmp_path / "photos")
    assert {path.name for path in written} <= {name for names in PHOTOS.values() for name in names}
    assert {"astronaut.png", "coffee.png", "china.jpg", "flower.jpg"} <= {path.name for path in written}
    for path in written:
        assert min(read_image(path).shape[1:]) >= 300


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match=r"skimage is not installed: pip install 'uniflow\[dev\]'"):
        export_photos(tmp_path)
