"""The benchmark of the first batch runs, and prints what it measured of as many files and shards as it was told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import first_batch


def test_it_compares_with_and_without_the_cache(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # put back after the test
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    options = ["--files", "120", "--shards", "20", "--rounds", "2", "--folder", str(tmp_path)]
    assert first_batch.main(options) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["name"] for line in lines] == [
        "first batch of 120 files",
        "first batch of 20 shards, counts kept",
        "first batch of 20 shards, index.json",
    ]
    assert all(line["rounds"] == 2 and line["ratio"] > 0 and len(line["wall"]) == 2 for line in lines)
    made = sorted(tmp_path.rglob("*"))
    assert len(made) == 1 + 1 + 120 + 1 + 24  # with three folders
    assert first_batch.main(options) == 0
    assert sorted(tmp_path.rglob("*")) == made
