"""Files from outside: what is not a regular file, or too large, is refused at once in one line."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import time
from pathlib import Path

import pytest

from uniflow.core import files
from uniflow.core.files import RefusedFileError, check_folder, open_regular, printable, read_bytes, read_text
from uniflow.core.json_files import read_json_object


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path) == read_bytes(str(tmp_path / "link"), 7) == path.read_bytes()
    assert read_text(path) == "text"
    with open_regular(path) as file:
        assert file.read(4) == b"\xef\xbb\xbft"
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def odd_files(folder: Path) -> dict[str, str]:
    """Files of each kind that is refused, and what is said about it."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    (folder / "zero").symlink_to("/dev/zero")
    with open(folder / "sparse", "wb") as file:
        file.truncate(20 * 10**9)
    (folder / "large").write_bytes(bytes(101))
    return {
        "pipe": "a named pipe",
        "folder": "a folder",
        "socket": "a socket",
        "zero": "a device",
        "sparse": "20.0 GB, more than the 100 bytes",
        "large": "101 bytes, more than the 100 bytes",
    }


def test_what_is_not_a_small_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    for name, reason in odd_files(tmp_path).items():
        with pytest.raises(RefusedFileError, match=reason) as info:
            read_bytes(tmp_path / name, 100)
        assert str(info.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(info.value)
        assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)
    assert time.monotonic() - start < 1
    with pytest.raises(RefusedFileError, match="null character"):
        read_bytes(f"{tmp_path}/a\0b")


def test_a_file_that_becomes_a_pipe_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(__file__)
    monkeypatch.setattr(files.os, "stat", lambda path: regular)
    with pytest.raises(RefusedFileError, match="a named pipe"):
        open_regular(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_file_that_does_not_know_its_size_is_read_up_to_the_limit() -> None:
    assert stat.S_ISREG(os.stat("/proc/self/maps").st_mode)
    with pytest.raises(RefusedFileError, match="more than the 10 bytes"):
        read_bytes("/proc/self/maps", 10)


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(RefusedFileError, match=r"not a text in UTF-8 \(byte 2\)"):
        read_text(tmp_path / "a")
    assert printable("aé") == "aé"
    assert printable(os.fsdecode(b"a\xff")) == "a\\udcff"


def test_a_folder_for_another_library_holds_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}" * 60)
    (tmp_path / "model.safetensors").write_bytes(bytes(200))
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "inside").mkdir()
    check_folder(tmp_path, 120)
    check_folder(tmp_path / "nothing")
    with pytest.raises(RefusedFileError, match=r"config\.json: 120 bytes, more than the 100 bytes"):
        check_folder(tmp_path, 100)
    for name, make in (("zero", lambda p: p.symlink_to("/dev/zero")), ("pipe", os.mkfifo)):
        make(tmp_path / name)
        with pytest.raises(RefusedFileError, match=f"{name}: a "):
            check_folder(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("text", ["{", '{"a":' * 100_000, "[1, 2]", "9" * 5000])
def test_json_from_outside_is_an_object_or_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json (is not valid JSON: |must hold a JSON object)") as info:
        read_json_object(tmp_path / "a.json")
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 200 + len(str(tmp_path))
