"""The listing of a folder in the cache is used while it is true, and only then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from uniflow.core.caches import read_cache, write_cache
from uniflow.data.images import listing_cache
from uniflow.data.images.folder import ImageFolder
from uniflow.data.images.listing import walk_images
from uniflow.data.images.listing_cache import list_files, on_fuse
from uniflow.data.images.names import Listing
from uniflow.data.images.reading import EXTENSIONS

ODD = os.fsdecode(b"c/\xff.png")  # not UTF-8


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """26 images in three classes."""
    for i in range(24):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 8), 10 * i).save(path)
    (tmp_path / "photos" / "c").mkdir()
    for name in (ODD, "c/\U0001f600.png", "c/\ue000.png"):
        shutil.copy(path, tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where listings are kept, also those of small folders that were made just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(listing_cache, "WORTH", 1)
    monkeypatch.setattr(listing_cache, "SETTLED", -(10**13))
    return tmp_path / "home" / "uniflow" / "listings"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of photographs whose entries were read."""
    folders: list[str] = []
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if "photos" in str(path):
            folders.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return folders


def names(folder: Path, **options: Any) -> list[str]:
    return list_files(folder, EXTENSIONS, **options).names.strings()


def module(root: Path, **settings: Any) -> ImageFolder:
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    data = ImageFolder(str(root), 8, batch_size=4, num_workers=0, **fractions, **settings)
    data.setup()
    return data


def test_a_warm_cache_reads_no_folder_and_gives_the_same_splits(photos: Path, cache: Path, read: list[str]) -> None:
    before = sorted(photos.rglob("*"))
    read.clear()
    plain = module(photos, cache_listing=False)
    assert not cache.exists()
    cold = module(photos)
    assert len(read) == 8  # each time the folder and its three classes
    warm = module(photos)
    assert len(read) == 8
    for data in (cold, warm):
        assert data.split_files() == plain.split_files()
        assert data.class_names == plain.class_names == ["a", "b", "c"]
        batch, wanted = next(iter(data.train_dataloader())), next(iter(plain.train_dataloader()))
        assert torch.equal(batch["image"], wanted["image"])
        assert torch.equal(batch["label"], wanted["label"])
    assert ODD in [name for _, found in warm.split_files().values() for name in found]
    module(photos, cache_listing=False)
    assert len(read) == 12
    assert sorted(photos.rglob("*")) == before
    assert cache.stat().st_mode & 0o077 == 0


def test_the_sorted_order_is_that_of_a_list(photos: Path, cache: Path) -> None:
    for _ in range(2):
        assert names(photos) == sorted(walk_images(photos))
    files = walk_images(photos)
    assert list_files(photos, EXTENSIONS).as_dict() == files == Listing.of(files).as_dict()


def touch_back(photos: Path) -> None:
    times = photos.joinpath("a").stat()
    (photos / "a" / "new.png").touch()
    os.utime(photos / "a", ns=(times.st_atime_ns, times.st_mtime_ns))


def swap(photos: Path) -> None:
    (photos / "b").rename(photos.parent / "b")
    shutil.copytree(photos / "a", photos / "b", copy_function=shutil.copy)


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda photos: (photos / "b" / "new.png").touch(),
    "removed": lambda photos: (photos / "a" / "00.png").unlink(),
    "renamed": lambda photos: (photos / "a" / "00.png").rename(photos / "a" / "zz.png"),
    "replaced": lambda photos: os.replace(photos / "a" / "00.png", photos / "a" / "02.png"),
    "a folder added": lambda photos: shutil.copytree(photos / "a", photos / "d"),
    "a folder removed": lambda photos: shutil.rmtree(photos / "a"),
    "a folder in another's place": swap,
    "the time set back": touch_back,
    "behind a link to a folder": lambda photos: (photos.parent / "elsewhere" / "new.png").touch(),
    "a link led nowhere": lambda photos: (photos.parent / "later").mkdir() or (photos.parent / "later/x.png").touch(),
    "a linked file replaced": lambda photos: os.replace(photos.parent / "one.png", photos.parent / "two.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(photos: Path, cache: Path, read: list[str], change: str) -> None:
    elsewhere = photos.parent / "elsewhere"
    elsewhere.mkdir()
    for path in (elsewhere / "old.png", photos.parent / "one.png", photos.parent / "two.png"):
        path.touch()
    (photos / "linked").symlink_to(elsewhere)
    (photos / "dangling").symlink_to(photos.parent / "later")
    (photos / "two.png").symlink_to(photos.parent / "two.png")
    old = list_files(photos, EXTENSIONS).as_dict()
    read.clear()
    assert list_files(photos, EXTENSIONS).as_dict() == old
    assert not read
    CHANGES[change](photos)
    wanted = walk_images(photos)
    assert wanted != old
    read.clear()
    assert list_files(photos, EXTENSIONS).as_dict() == wanted
    assert read
    read.clear()
    assert list_files(photos, EXTENSIONS).as_dict() == wanted
    assert not read


def test_what_is_not_kept(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_cache, "SETTLED", 2 * 10**9)
    wanted = names(photos)  # another change now could leave the time as it is
    monkeypatch.setattr(listing_cache, "SETTLED", -(10**13))
    monkeypatch.setattr(listing_cache, "WORTH", 28)
    names(photos)
    monkeypatch.setattr(listing_cache, "WORTH", 27)
    monkeypatch.setattr(listing_cache, "on_fuse", lambda device: True)
    names(photos)
    assert not cache.exists()
    monkeypatch.setattr(listing_cache, "on_fuse", lambda device: False)
    assert names(photos) == wanted
    assert len(list(cache.iterdir())) == 1
    assert names(photos / "a") == [f"{i:02d}.png" for i in range(0, 24, 2)]
    assert list_files(photos, frozenset({".gif"})).names.strings() == []


def test_file_systems_of_object_stores_are_known(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 0:45 / /mnt/bucket rw,nosuid - fuse.gcsfuse bucket rw\n"
        "37 35 8:1 / /mnt/disk rw - ext4 /dev/sda1 rw\n38 35 8:2 / /mnt/usb rw shared:1 - fuseblk /dev/sdb rw\n"
    )
    wanted = {(0, 45): True, (8, 1): False, (8, 2): False, (9, 9): False}
    assert {number: on_fuse(os.makedev(*number), table) for number in wanted} == wanted
    assert not on_fuse(os.makedev(0, 45), tmp_path / "none")


class Opens:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["OPENED"],)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "cut off": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file, other: os.truncate(file, 0),
    "text": lambda file, other: file.write_text("no archive"),
    "a bit flipped": lambda file, other: file.write_bytes(file.read_bytes().replace(b"00.png", b"0x.png")),
    "a pickle": lambda file, other: np.savez(file, about=np.array([Opens()], object)),
    "of another folder": lambda file, other: os.replace(other, file),
    "a named pipe": lambda file, other: (file.unlink(), os.mkfifo(file)),
    "a folder": lambda file, other: (file.unlink(), file.mkdir()),
    "a name short": lambda file, other: change(file, lambda about, arrays: arrays.update(places=arrays["places"][1:])),
    "a folder that is not there": lambda file, other: change(file, lambda about, arrays: about.update(folders=[])),
    "other types": lambda file, other: change(file, lambda about, arrays: arrays.update(inodes=arrays["places"])),
    "no times": lambda file, other: change(file, lambda about, arrays: about.pop("read")),
    "times that are none": lambda file, other: change(file, lambda about, arrays: about.update(read=[["a", 1]])),
    "an earlier version": lambda file, other: change(file, lambda about, arrays: about.update(format=0)),
}


def change(file: Path, alter: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    about, arrays = read_cache(file)
    alter(about, arrays)
    write_cache(file, about, arrays)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_cache_is_ignored(
    photos: Path, cache: Path, read: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = photos.parent / "opened"
    monkeypatch.setenv("OPENED", str(opened))
    wanted = names(photos)
    (file,) = cache.iterdir()
    names(photos / "a")
    (other,) = set(cache.iterdir()) - {file}
    DAMAGE[damage](file, other)
    read.clear()
    assert names(photos) == wanted
    assert len(read) == 4
    assert not opened.exists()
    assert not list(cache.glob("*.part"))
    if damage != "a folder":
        assert names(photos) == wanted
        assert len(read) == 4


def test_a_home_that_cannot_be_written_is_no_error(
    photos: Path, cache: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for home in (str(tmp_path / "file" / "home"), "/dev/null/home"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        for _ in range(2):
            read.clear()
            assert len(names(photos)) == 27
            assert len(read) == 4


def test_links_to_one_file_are_named_again(photos: Path, cache: Path, read: list[str]) -> None:
    (photos / "a" / "again.png").symlink_to(photos / "b" / "01.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 names are links to files"):
            assert len(names(photos)) == 27
    assert len(read) == 4


def test_a_process_leaves_what_another_wrote_meanwhile(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = listing_cache.walk

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(listing_cache, "walk", walk)
        names(photos)
        (file,) = cache.iterdir()
        os.utime(file, ns=(1, 1))
        return walk(*arguments)

    monkeypatch.setattr(listing_cache, "walk", slowly)
    names(photos)
    (file,) = cache.iterdir()
    assert file.stat().st_mtime_ns == 1


def test_files_of_other_listings_are_left_out_by_their_identity() -> None:
    listing = Listing.of({"a/x": 1 << 64 | 5, "b/y": 2 << 64 | 5, "c": 1 << 64 | 7})
    other = Listing.of({"else": 2 << 64 | 5, "more": 3 << 64 | 7})
    left = listing.without([other])
    assert left.names.strings() == ["a/x", "c"]
    assert left.used_folders() == ["a/", ""]
    assert left.names[-1] == b"c"
    assert left.take(np.array([1])).as_dict() == {"c": 1 << 64 | 7}
    assert listing.without([]) is listing
    with pytest.raises(IndexError):
        left.names[2]
