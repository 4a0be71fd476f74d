"""Files in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from uniflow.core.caches import cache_path, read_cache, write_cache


def test_the_file_has_a_name_that_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_path("listings", "/data/my photos", extensions=[".png"])
    assert path is not None
    assert path.parent == tmp_path / "uniflow" / "listings"
    assert path.name.startswith("my_photos-")
    others = [cache_path("listings", "/other/my photos", extensions=[".png"]), cache_path("listings", "/", x=1)]
    others += [cache_path("listings", "/data/my photos", extensions=[]), cache_path("listings", os.fsdecode(b"/\xff"))]
    assert len({path, *others}) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = cache_path("listings", "/data")
    assert path is not None
    assert path.parent == tmp_path / "home" / ".cache" / "uniflow" / "listings"
    monkeypatch.setenv("HOME", "nowhere")
    assert cache_path("listings", "/data") is None


def test_values_and_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.npz"
    assert read_cache(path) == read_cache(None) == ({}, {})
    write_cache(None, {}, {})
    write_cache(path, {"name": "\udcff", "number": 2**70}, {"x": np.arange(3)})
    about, arrays = read_cache(path)
    assert about == {"name": "\udcff", "number": 2**70}
    assert arrays["x"].tolist() == [0, 1, 2]
    assert os.listdir(path.parent) == ["file.npz"]
