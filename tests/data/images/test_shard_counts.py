"""Samples of shards are counted once, and again when the file has changed."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uniflow.data.images import shard_counts as counting
from uniflow.data.images.shard_counts import shard_counts
from uniflow.data.images.shard_lists import index_counts, separate, shard_urls
from uniflow.data.images.shards import ShardReader
from uniflow.data.images.webdataset import WebDataset
from uniflow.data.skipped import SkipLog


def write(path: Path, images: int, other: tuple[str, ...] = ()) -> None:
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in (*(f"{i:03d}.png" for i in range(images)), *other):
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three shards with 3, 4 and 5 samples, whose counts are kept although they were made just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(counting, "WORTH", 1)
    monkeypatch.setattr(counting, "SETTLED", -(10**13))
    for i in range(3):
        write(tmp_path / "shards" / f"{i}.tar", 3 + i)
    return [str(tmp_path / "shards" / f"{i}.tar") for i in range(3)]


class Counting(ShardReader):
    """Notes which shards it reads."""

    def __init__(self, **options: Any) -> None:
        super().__init__("train", None, SkipLog(None), **options)
        self.read_shards: list[str] = []

    def raw(self, url: str, *arguments: Any, **options: Any) -> Any:
        self.read_shards.append(url)
        return super().raw(url, *arguments, **options)


def count(urls: list[str], trust_index: bool = True, **options: Any) -> tuple[list[int] | None, list[str]]:
    reader = Counting(**options)
    return shard_counts(urls, reader, trust_index), reader.read_shards


def test_unchanged_shards_are_not_read_again(urls: list[str]) -> None:
    assert count(urls) == ([3, 4, 5], urls)
    assert count(urls) == ([3, 4, 5], [])
    write(Path(urls[1]), 9)
    assert count(urls) == ([3, 9, 5], urls[1:2])
    assert count(urls[::-1]) == ([5, 9, 3], [])
    assert count(urls, trust_index=False)[1] == urls  # whole files, not their headers alone
    assert count(urls, image_field="jpg") == ([0, 0, 0], urls)


def test_a_shard_with_something_to_log_is_read_each_time(urls: list[str]) -> None:
    write(Path(urls[2]), 5, other=("notes.md",))
    for _ in range(2):
        assert count(urls)[1][-1] == urls[2]
    assert count(urls) == ([3, 4, 5], urls[2:])


def test_what_may_have_changed_unseen_is_not_kept(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SETTLED", 2 * 10**9)
    count(urls)
    assert count(urls) == ([3, 4, 5], urls)
    monkeypatch.setattr(counting, "SETTLED", -(10**13))
    monkeypatch.setattr(counting, "WORTH", 13)
    count(urls)
    assert count(urls) == ([3, 4, 5], urls)


@pytest.mark.parametrize("content", ["{}", '{"shards": []}', '{"shards": {"0.tar": [1]}}', '{"shards": {"0.tar": 1}}'])
def test_a_damaged_cache_is_ignored(urls: list[str], content: str, tmp_path: Path) -> None:
    count(urls)
    (file,) = (tmp_path / "home" / "uniflow" / "shards").iterdir()
    for damage in (lambda: file.write_text(content), lambda: counting.write_cache(file, json.loads(content))):
        damage()
        assert count(urls) == ([3, 4, 5], urls)
        assert count(urls) == ([3, 4, 5], [])


def test_the_epoch_is_as_long_as_before(urls: list[str], tmp_path: Path) -> None:
    write(tmp_path / "other" / "0.tar", 2)
    for _ in range(2):
        other = str(tmp_path / "other" / "0.tar")
        data = WebDataset(f"{tmp_path}/shards/*.tar", other, other, size=8, batch_size=2, num_workers=0)
        data.setup()
        assert data.epoch_batches() == 6


def noted(call: Any, calls: list[str]) -> Any:
    """`call`, which adds its path to `calls`."""

    def run(path: Any, *rest: Any, **options: Any) -> Any:
        calls.append(str(path))
        return call(path, *rest, **options)

    return run


def test_an_index_is_read_once_and_folders_are_resolved_once(
    urls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards" / "index.json").write_text(json.dumps({"shards": {"0.tar": 3, "1.tar": 4, "9.tar": 1}}))
    with pytest.raises(ValueError, match=r"9\.tar does not exist"):
        shard_urls(f"{tmp_path}/shards/*.tar", "train")
    (tmp_path / "shards" / "index.json").write_text(json.dumps({"shards": {"0.tar": 3, "1.tar": 4}}))
    calls: list[str] = []
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, noted(getattr(os, name), calls))
    assert index_counts(urls * 100) == [3, 4, None] * 100
    assert index_counts(["https://host/0.tar"]) == [None]
    assert 0 < len(calls) < 10
    calls.clear()
    separate({"train": urls * 100, "val": ["https://host/v.tar"], "test": ["https://host/t.tar"]})
    assert 300 <= len(calls) < 400


def test_held_out_shards_are_found_under_other_paths(urls: list[str], tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "shards")
    (tmp_path / "one.tar").symlink_to(urls[2])
    with pytest.warns(UserWarning, match="2 training shards are also"):
        left = separate(
            {"train": urls, "val": [str(tmp_path / "linked" / "0.tar")], "test": [f"file:{tmp_path}/one.tar"]}
        )
    assert left["train"] == urls[1:2]
