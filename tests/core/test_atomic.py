"""What is written beside and moved into place is never seen half-written, and a kill's leftovers are put right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from uniflow.cli.checkpoint import AtomicCheckpointIO
from uniflow.core import atomic
from uniflow.core.atomic import aside, beside, existing, put_in_place, recover, replacing, replacing_shared
from uniflow.data.skipped import SkipLog


class Killed(BaseException):
    pass


def make(path: Path, text: str, folder: bool) -> None:
    if folder:
        path.mkdir(parents=True)
    (path / "piece" if folder else path).write_text(text)


def write_half(path: Path, folder: bool, write: Any = replacing) -> None:
    with write(path) as part:
        make(part, "half", folder)
        raise Killed


def content(path: Path) -> str:
    return (path / "piece" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", ["file", "folder", "nothing"])
def test_replacing(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "run" / "last.ckpt"
    if old != "nothing":
        path.parent.mkdir()
        make(path, "old", old == "folder")
    with pytest.raises(Killed):
        write_half(path, new == "folder")
    assert (content(path) == "old") if old != "nothing" else not path.exists()
    with replacing(path) as part:
        make(part, "new", new == "folder")
        assert not path.exists() or content(path) == "old"
    assert content(path) == "new"
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("folder", [False, True])
def test_a_kill_while_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, folder: bool) -> None:
    path = tmp_path / "last.ckpt"
    make(path, "old", folder)
    make(beside(path), "new", folder)
    left = [calls]

    def dying(function: Any) -> Any:
        def call(*args: Any) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            function(*args)

        return call

    monkeypatch.setattr(atomic.os, "rename", dying(os.rename))
    monkeypatch.setattr(atomic.os, "replace", dying(os.replace))
    if calls == 1 and not folder:
        put_in_place(path)
        assert content(path) == "new"
        return
    with pytest.raises(Killed):
        put_in_place(path)
    monkeypatch.undo()
    found = existing(path)
    assert found is not None
    assert content(found) == "old"
    assert found == (aside(path) if folder and calls else path)
    recover(path)
    assert content(path) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_there_may_be_nothing(tmp_path: Path) -> None:
    recover(tmp_path / "last.ckpt")
    assert existing(tmp_path / "last.ckpt") is None


class Dies:
    """A checkpoint whose writing is killed half-way."""

    def __reduce__(self) -> Any:
        raise Killed


def test_a_checkpoint_that_dies_in_writing_leaves_the_old_one(tmp_path: Path) -> None:
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "weights": torch.arange(5)}, path)
    with pytest.raises(Killed):
        io.save_checkpoint({"step": 2, "dies": Dies()}, str(path))
    assert torch.equal(io.load_checkpoint(path, weights_only=True)["weights"], torch.arange(5))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    TorchCheckpointIO().save_checkpoint({"step": 1, "weights": torch.arange(5)}, tmp_path / "lightning.ckpt")
    assert path.stat().st_mode == (tmp_path / "lightning.ckpt").stat().st_mode


def test_a_line_that_a_kill_cut_off_is_removed(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skipped_images.log")
    log.add("train", "ä.png", "empty")
    with open(tmp_path / "skipped_images.log", "a") as file:
        file.write("train\tb.p")
    SkipLog(tmp_path / "skipped_images.log").add("train", "b.png", "empty")
    assert (tmp_path / "skipped_images.log").read_text() == "train\tä.png\tempty\ntrain\tb.png\tempty\n"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.npz"
    with replacing_shared(path) as first:
        first.write_text("first")
        with replacing_shared(path) as second:
            second.write_text("second")
        assert content(path) == "second"
    assert content(path) == "first"
    with pytest.raises(Killed):
        write_half(path, False, replacing_shared)
    assert content(path) == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["cache.npz"]
