"""The skip log: each name once, whoever writes it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from uniflow.data.skipped import SkipLog


def test_a_name_is_written_once_by_all_writers(tmp_path: Path) -> None:
    path = tmp_path / "run" / "skipped_images.log"
    first, second = SkipLog(path), SkipLog(path)
    assert first.summary() is None
    for log in (first, second, first):
        log.add("train", "a b.jpg", "truncated\nfile")
    second.add("val", "a b.jpg", "truncated file")
    second.add("train", "a b.jpg.png", "empty")
    assert (
        path.read_text() == "train\ta b.jpg\ttruncated file\nval\ta b.jpg\ttruncated file\ntrain\ta b.jpg.png\tempty\n"
    )
    assert first.counts() == {"train": 2, "val": 1}
    assert first.summary() == f"unreadable images skipped: 2 train, 1 val; named in {path}"


def _write(path: Path) -> None:
    log = SkipLog(path)
    for i in range(200):
        log.add("train", f"{i}.jpg", "broken")


def test_processes_do_not_write_over_each_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"train\t{i}.jpg\tbroken" for i in range(200))


def test_without_a_file_the_log_is_pythons(caplog: pytest.LogCaptureFixture) -> None:
    log = SkipLog(None)
    log.add("val", "x.png", "empty")
    log.add("val", "x.png", "empty")
    assert [record.getMessage() for record in caplog.records] == ["skipped an image: val\tx.png\tempty"]
    assert log.counts() == {"val": 1}
