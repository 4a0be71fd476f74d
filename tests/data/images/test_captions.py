"""Captions of shards and folders: each with its image, whoever reads them; what has none is skipped and named."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from PIL import Image

from uniflow.data import CachedLatents, ClipFolder, ImageFolder, Scenes, WebDataset
from uniflow.data.images.captions import MAX_CAPTION, CaptionSource
from uniflow.data.images.reading import ImageReadError
from uniflow.tools.pack import pack

Batch = dict[str, Any]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (12, 12), value).save(file, "PNG")
    return file.getvalue()


def said(value: int) -> str:
    return f"the grey é {value}"


def write(path: Path, values: range, odd: dict[int, dict[str, bytes]] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as tar:
        for value in values:
            fields: dict[str, Any] = {
                "txt": f" {said(value)}\n".encode(),
                "json": json.dumps({"caption": said(value), "url": "u"}).encode(),
            }
            fields = (odd or {}).get(value, fields)
            tar.write({"__key__": f"{value:04d}", "png": png(value), **fields})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for i in range(3):
        write(folder / f"train-{i}.tar", range(10 * i, 10 * i + 10))
    for split, first in (("val", 100), ("test", 120)):
        for i in range(2):
            write(folder / f"{split}-{i}.tar", range(first + 5 * i, first + 5 * i + 5))
    return folder


class AsRank(WebDataset):
    """A data module that takes itself for one of several processes."""

    rank = 0
    world_size = 1


def module(folder: Path, rank: int = 0, world_size: int = 1, **kwargs: Any) -> AsRank:
    splits = {split: str(folder / f"{split}-*.tar") for split in ("train", "val", "test")}
    settings: Batch = {"size": 8, "batch_size": 2, "num_workers": 0, "epoch_length": 24, "caption": "txt"}
    data = AsRank(**{**splits, **settings, **kwargs})
    data.rank, data.world_size = rank, world_size
    return data


def values(batch: Batch) -> list[int]:
    return [int(image[0, 4, 4]) for image in batch["image"]]


@pytest.mark.parametrize("caption", ["txt", "json:caption"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_with_its_caption(shards: Path, workers: int, caption: str) -> None:
    data = module(shards, num_workers=workers, caption=caption)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.plain_train_dataloader()):
        batches = list(loader)
        assert sum(len(batch["image"]) for batch in batches) in (24, 10, 30)
        for batch in batches:
            assert batch["caption"] == [said(value) for value in values(batch)]


def test_by_default_there_are_no_captions_and_the_same_images(shards: Path) -> None:
    plain, told = (list(module(shards, caption=c).train_dataloader()) for c in (None, "txt"))
    assert set(plain[0]) == {"image"}
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(plain, told, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_the_captions(shards: Path, workers: int) -> None:
    modules = [module(shards, rank, 2, batch_size=1, num_workers=workers) for rank in range(2)]
    seen = [value for data in modules for batch in data.test_dataloader() for value in values(batch)]
    assert sorted(seen) == list(range(120, 130))
    for data in modules:
        assert all(batch["caption"] == [said(v) for v in values(batch)] for batch in data.train_dataloader())


BAD = {
    "missing": ({}, "no caption: it has no .txt"),
    "empty": ({"txt": b" \n"}, "no caption: .txt is empty"),
    "not UTF-8": ({"txt": b"caf\xe9"}, r"no caption: .txt is not UTF-8 \(byte 3\)"),
    "huge": ({"txt": b"x" * (MAX_CAPTION + 1)}, "has more than 1,048,576 bytes"),
}
BAD_JSON = {
    "no file": ({}, "no caption: it has no .json"),
    "no JSON": ({"json": b"{"}, "no caption: .json is not valid JSON"),
    "no object": ({"json": b"[1]"}, "no caption: .json has no text under 'caption'"),
    "no key": ({"json": b"{}"}, "no caption: .json has no text under 'caption'"),
    "null": ({"json": b'{"caption": null}'}, "no caption: .json has no text under 'caption'"),
    "empty text": ({"json": b'{"caption": ""}'}, "no caption: .json under 'caption' is empty"),
    "half a pair": ({"json": rb'{"caption": "\ud800"}'}, "no caption: .json has no valid text under 'caption'"),
}


@pytest.mark.parametrize("kind", [*BAD, *BAD_JSON])
def test_a_sample_without_a_caption_is_skipped_and_named(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    fields, reason = {**BAD, **BAD_JSON}[kind]
    write(tmp_path / "val-0.tar", range(5), {2: fields})
    data = module(shards, val=str(tmp_path / "val-0.tar"), caption="txt" if kind in BAD else "json:caption")
    assert [v for batch in data.val_dataloader() for v in values(batch)] == [0, 1, 3, 4]
    assert data.skip_log.counts() == {"val": 1}
    assert "val-0.tar:0002" in caplog.text
    source = data.caption
    assert source
    with pytest.raises(ImageReadError, match=reason):
        source.of_sample(fields, "x")


@pytest.mark.parametrize(("workers", "resample"), [(0, False), (2, True)])
def test_training_goes_on_after_the_samples_that_were_seen(tmp_path: Path, workers: int, resample: bool) -> None:
    """A sample without a caption leaves its slot to the next one, the same after a resume."""
    write(tmp_path / "train-0.tar", range(10), {3: {}, 4: {}, 7: {"txt": b"\xff"}})
    write(tmp_path / "train-1.tar", range(10, 20), {11: {}})
    for split in ("val", "test"):
        write(tmp_path / f"{split}-0.tar", range(2))
    settings: Batch = {"resample": resample, "num_workers": workers, "shuffle_buffer": 4}
    whole = [(values(b), b["caption"]) for b in module(tmp_path, **settings).train_dataloader()]
    assert len(whole) == 12
    assert not {3, 4, 7, 11} & {value for batch, _ in whole for value in batch}
    for seen in (3, 8) if workers else (1, 3, 5, 8):  # to start workers takes its time
        data = module(tmp_path, **settings)
        data.position.samples = 2 * seen
        assert [(values(b), b["caption"]) for b in data.train_dataloader()] == whole[seen:]


def test_shards_without_any_caption_end_in_one_line(shards: Path) -> None:
    data = module(shards, caption="json:text")
    with pytest.raises(ValueError, match="1000 training samples in a row cannot be read"):
        list(data.train_dataloader())
    with pytest.raises(ValueError, match="not one image can be read"):
        list(data.val_dataloader())


@pytest.mark.parametrize("caption", ["", ".txt", "json:", "__key__", "a/txt"])
def test_an_argument_that_names_nothing_is_refused(tmp_path: Path, caption: str) -> None:
    for make in (lambda: module(tmp_path, caption=caption), lambda: ImageFolder(str(tmp_path), caption=caption)):
        with pytest.raises(ValueError, match=r": caption must be txt, json:KEY \(such as json:caption\) or null"):
            make()


def test_other_fields_can_hold_captions(shards: Path) -> None:
    assert CaptionSource.parse("meta.json:a:b", "x") == ("meta.json", "a:b")
    assert CaptionSource.parse("TXT", "x") == ("txt", None)


@pytest.mark.parametrize("module", [WebDataset, ImageFolder, Scenes, CachedLatents, ClipFolder])
def test_every_module_says_what_gives_captions(module: Any) -> None:
    assert re.search(r"data\.(caption|fields)\b", module.field_hints["caption"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images with captions beside them; one has none and one is empty."""
    for split, first in (("train", 0), ("val", 100), ("test", 120)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for value in range(first, first + 8):
            stem = tmp_path / "photos" / split / f"my.{value:03d}"
            Path(f"{stem}.png").write_bytes(png(value))
            Path(f"{stem}.txt").write_text(said(value), encoding="utf-8")
            Path(f"{stem}.json").write_text(json.dumps({"caption": f"json {value}"}))
    (tmp_path / "photos/val/my.101.txt").unlink()
    (tmp_path / "photos/val/my.102.txt").write_text("")
    return tmp_path / "photos"


def test_captions_beside_the_images_of_a_folder(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    def folder(caption: str | None) -> ImageFolder:
        return ImageFolder(str(photos), 8, batch_size=2, num_workers=0, caption=caption)

    data = folder("txt")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["caption"] == [said(value) for value in values(batch)]
    assert [v for batch in data.val_dataloader() for v in values(batch)] == [100, *range(103, 108)]
    assert data.skip_log.counts() == {"val": 2}
    assert "no caption: there is no my.101.txt beside it" in caplog.text
    assert "no caption: .txt is empty" in caplog.text
    assert next(iter(folder("json:caption").val_dataloader()))["caption"] == ["json 100", "json 101"]
    assert "caption" not in next(iter(folder(None).val_dataloader()))


@pytest.mark.parametrize("options", [{}, {"crops_per_image": 2, "crop_size": 8}])
def test_packed_shards_carry_the_texts_beside_images(photos: Path, tmp_path: Path, options: Batch) -> None:
    index = pack(photos, tmp_path / "packed", format="png", **options)
    count = 2 if options else 1
    assert index["captions"]["train"] == index["samples"]["train"] == 8 * count
    data = module(tmp_path / "packed")
    batches = list(data.val_dataloader())
    if not options:
        assert index["captions"]["val"] == 7
        assert sorted(v for batch in batches for v in values(batch)) == [100, *range(103, 108)]
    assert all(batch["caption"] == [said(v) for v in values(batch)] for batch in batches)
    assert pack(photos, tmp_path / "plain", captions=False, **options)["captions"]["train"] == 0
    (photos / "train/my.001.txt").unlink()
    (photos / "train/my.001.txt").mkdir()
    assert pack(photos, tmp_path / "odd", **options)["skipped"] == [
        {"name": "my.001.png", "reason": "no caption: my.001.txt: a folder; give a regular file"}
    ]
