"""Shards that are cut off, damaged, hostile or not what their index says: all images, or one clear line."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from uniflow.data import WebDataset
from uniflow.data.images.archives import BrokenShardError, read_samples
from uniflow.data.images.shard_lists import MAX_SHARDS, shard_urls

Files = dict[str, bytes]


def png(value: int, size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def write(path: Path, files: Files, mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def images(count: int, first: int = 0) -> Files:
    return {f"{i:04d}.png": png(i) for i in range(first, first + count)}


class AsRank(WebDataset):
    """A data module that takes itself for one of several processes."""

    rank = 0
    world_size = 1


def module(folder: Path, rank: int = 0, world_size: int = 1, **kwargs: Any) -> AsRank:
    """Ten training and two test images; the validation shards are those of the test."""
    for split, count in (("train", 10), ("test", 2)):
        if not (folder / f"{split}-0.tar").exists():
            write(folder / f"{split}-0.tar", images(count, 100))
    splits = {split: str(folder / f"{split}-*.tar") for split in ("train", "val", "test")}
    settings: dict[str, Any] = {**splits, "size": 8, "batch_size": 2, "num_workers": 0, "epoch_length": 10, **kwargs}
    data = AsRank(**settings)
    data.rank, data.world_size = rank, world_size
    return data


def ids(batches: Iterable[dict[str, torch.Tensor]]) -> list[int]:
    return [int(image[0, 4, 4]) for batch in batches for image in batch["image"]]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_cut_anywhere_gives_all_images_or_one_line(tmp_path: Path, indexed: bool) -> None:
    shard = write(tmp_path / "val-0.tar", images(3))
    whole = shard.read_bytes()
    if indexed:
        (tmp_path / "index.json").write_text(json.dumps({"shards": {"val-0.tar": 3}}))
    data = module(tmp_path)
    data.setup()
    complete = 0
    for length in sorted({*range(0, len(whole) + 1, 512), 1, 100, 511, 513, 600, 1023, 1025, 1500, len(whole) - 1}):
        shard.write_bytes(whole[:length])
        try:
            assert ids(data.val_dataloader()) == [0, 1, 2]
            complete += 1
        except ValueError as error:
            assert str(error).startswith(f"the val shard {shard} is broken (")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
    assert 10 < complete < 20  # the rest is padding


def test_a_damaged_header_is_noticed(tmp_path: Path) -> None:
    shard = write(tmp_path / "val-0.tar", images(3))
    broken = bytearray(shard.read_bytes())
    broken[1024 + 3] ^= 1  # in the name of the second file
    shard.write_bytes(broken)
    with pytest.raises(ValueError, match=r"val-0.tar is broken \(the header before byte 1,536 is damaged\)"):
        list(module(tmp_path).val_dataloader())


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("indexed", [3, 5])
def test_another_number_of_images_than_the_index_says(tmp_path: Path, world_size: int, indexed: int) -> None:
    write(tmp_path / "val-0.tar", images(4))
    write(tmp_path / "val-1.tar", images(4, 4))
    (tmp_path / "index.json").write_text(json.dumps({"shards": {"val-0.tar": 4, "val-1.tar": indexed}}))
    for rank in range(world_size):
        with pytest.raises(
            ValueError, match=rf"val-1.tar has 4 images, but index.json says {indexed}; .*allow_missing"
        ):
            list(module(tmp_path, rank, world_size).val_dataloader())
    loaders = [module(tmp_path, rank, world_size, allow_missing=True).val_dataloader() for rank in range(world_size)]
    assert sorted(i for loader in loaders for i in ids(loader)) == list(range(8))


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_left_is_evaluated_if_it_is_allowed(tmp_path: Path, world_size: int) -> None:
    shard = write(tmp_path / "val-0.tar", images(9))
    (tmp_path / "index.json").write_text(json.dumps({"shards": {"val-0.tar": 9, "val-1.tar": 9}}))
    with pytest.raises(ValueError, match=r"val-1.tar does not exist \(1 that index.json names are missing\)"):
        module(tmp_path).setup()
    shard.write_bytes(shard.read_bytes()[:5200])  # in the middle of the sixth
    modules = [module(tmp_path, rank, world_size, allow_missing=True) for rank in range(world_size)]
    assert sorted(i for data in modules for i in ids(data.val_dataloader())) == [0, 1, 2, 3]
    assert modules[0].skip_log.counts() == {"val": 1}


def test_stray_files_are_not_samples(tmp_path: Path) -> None:
    strays = {"README": b"x", ".DS_Store": b"x", "._0000.png": b"x", "a/._b.png": b"x", "LICENSE.txt": b"x"}
    write(tmp_path / "val-0.tar", {**strays, **images(4), "notes.md": b"x"})
    data = [module(tmp_path, rank, 2, batch_size=1) for rank in range(2)]
    assert sorted(i for d in data for i in ids(d.val_dataloader())) == [0, 1, 2, 3]
    assert data[0].skip_log.counts() == {"val": 2}  # LICENSE.txt and notes.md


def test_the_image_of_a_sample_is_the_one_without_a_dot(tmp_path: Path) -> None:
    write(tmp_path / "val-0.tar", {"a.depth.png": png(9), "a.png": png(1), "b.x.png": png(2), "b.json": b"{}"})
    assert ids(module(tmp_path).val_dataloader()) == [1, 2]
    train = write(tmp_path / "depth.tar", {f"{i}.{kind}png": png(9) for i in range(3) for kind in ("", "depth.")})
    depth = module(tmp_path, image_field="depth.png", train=str(train))
    assert ids(depth.val_dataloader()) == [9]
    assert depth.skip_log.counts() == {"val": 1}


@pytest.mark.parametrize("names", [["a.jpg", "a.png"], ["my.0.png", "my.1.png", "my.2.png"]])
def test_several_images_in_one_sample_are_refused(tmp_path: Path, names: list[str]) -> None:
    shard = write(tmp_path / "val-0.tar", dict.fromkeys(names, png(1)))
    with pytest.raises(ValueError, match=rf"^{shard}: the sample \w+ has {len(names)} images \(.*image_field"):
        list(module(tmp_path).val_dataloader())
    data = module(tmp_path, train=str(shard), val=str(tmp_path / "test-0.tar"), num_workers=1)
    with pytest.raises(ValueError, match=rf"^{shard}: the sample") as info:
        list(data.train_dataloader())
    assert "\n" not in str(info.value)


def test_names_that_are_not_utf_8_are_written_with_backslashes(tmp_path: Path) -> None:
    write(tmp_path / "val-0.tar", {os.fsdecode(b"\xff.png"): png(1), os.fsdecode(b"\xfe.png"): b"broken"})
    data = module(tmp_path)
    assert [batch["name"] for batch in data.val_dataloader()] == [["\\udcff"]]


@pytest.mark.parametrize("kind", ["text", "empty", "only zeros", "pipe", "folder"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_not_a_shard_is_said_in_one_line(tmp_path: Path, kind: str, workers: int) -> None:
    shard = tmp_path / "val-0.tar"
    match kind:
        case "pipe":
            os.mkfifo(shard)
        case "folder":
            shard.mkdir()
        case _:
            shard.write_bytes({"text": b"text " * 500, "empty": b"", "only zeros": bytes(10240)}[kind])
    with pytest.raises(ValueError, match="not one image" if kind == "only zeros" else "is broken") as info:
        list(module(tmp_path, num_workers=workers).val_dataloader())
    assert "\n" not in str(info.value)


def test_an_evaluation_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "val-0.tar", dict.fromkeys(images(5), b"broken"))
    with pytest.raises(ValueError, match="not one image can be read"):
        list(module(tmp_path, num_workers=2).val_dataloader())
    write(tmp_path / "val-0.tar", images(5) | {"0002.png": b"broken"})
    data = module(tmp_path)
    assert ids(data.val_dataloader()) == [0, 1, 3, 4]
    assert data.skip_log.counts() == {"val": 1}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_shards_are_read_and_a_cut_is_noticed(tmp_path: Path, mode: str) -> None:
    shard = write(tmp_path / "val-0.tar", images(3), mode)
    assert ids(module(tmp_path).val_dataloader()) == [0, 1, 2]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"val-0.tar is broken"):
        list(module(tmp_path).val_dataloader())


def test_bombs_are_refused_at_once(tmp_path: Path) -> None:
    large, name = tarfile.TarInfo("a.png"), tarfile.TarInfo("././@LongLink")
    large.size = name.size = 10**12
    name.type = tarfile.GNUTYPE_LONGNAME
    start = time.monotonic()
    for member in (large, name):
        path = tmp_path / "bomb.tar"
        for content in (header := member.tobuf(tarfile.GNU_FORMAT), gzip.compress(header + bytes(2**20))):
            path.write_bytes(content)
            with pytest.raises(BrokenShardError, match="1,000,000,000,000 bytes"):
                list(read_samples(str(path)))
    assert time.monotonic() - start < 5
    write(tmp_path / "val-0.tar", {"a.png": png(1, (1, 30000)), "b.png": png(2, (200, 200)), "c.png": png(3)})
    data = module(tmp_path, max_pixels=30000)
    assert ids(data.val_dataloader()) == [1, 3]
    assert data.skip_log.counts() == {"val": 1}


def test_held_out_shards_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train-1.tar", images(4))
    write(tmp_path / "train-2.tar", images(4, 4))
    (tmp_path / "link").symlink_to(tmp_path)
    held_out = f"{tmp_path}/./link/../{tmp_path.name}/train-1.tar"
    data = module(tmp_path, val=held_out, test=str(tmp_path / "test-0.tar"))
    with pytest.warns(UserWarning, match="1 training shards are also validation or test shards"):
        data.setup()
    assert [Path(url).name for url in data.urls["train"]] == ["train-0.tar", "train-2.tar"]
    with pytest.raises(ValueError, match="all 3 training shards are validation or test shards"):
        module(tmp_path, val=str(tmp_path / "link" / "train-*.tar")).setup()
    with pytest.warns(UserWarning, match="1 shards are both validation and test shards, such as .*test-0.tar"):
        module(tmp_path, val=str(tmp_path / "link" / "test-0.tar")).setup()


def test_patterns_are_counted_before_they_are_expanded() -> None:
    for pattern in (
        "https://h/{0..999999999}.tar",
        "https://h/{0..999}{a,b}{000..999}.tar",
        "https://h/" + "{a,b}" * 60,
    ):
        with pytest.raises(ValueError, match=rf"stands for [\d,]+ shards, more than {MAX_SHARDS:,}"):
            shard_urls(pattern, "train")
    for pattern, count in (("{0..9}", 10), ("{00..10..5}", 3), ("{a,b{1..3},{x,y}}{0..1}", 12), ("{a}", 1)):
        assert len(shard_urls(f"https://h/{pattern}.tar", "train")) == count
    with pytest.raises(ValueError, match=r"the shard pattern .* is wrong"):
        shard_urls("https://h/{a,b.tar", "train")
    with pytest.raises(ValueError, match=r"the shard pattern .* is wrong"):
        shard_urls("https://h/${NO_SUCH_VARIABLE}.tar", "train")


@pytest.mark.parametrize("text", ["[]", '{"shards": []}', '{"shards": {"a": "b"}}', '{"class_names": "ab"}', "\\udcff"])
def test_an_index_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "val-0.tar", images(3))
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json") as info:
        module(tmp_path).setup()
    assert "\n" not in str(info.value)
