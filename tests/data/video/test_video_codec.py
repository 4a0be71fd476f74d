"""torchcodec behind the interface of PyAV's reader: the same frames and errors; what is said without it."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path
from typing import Any

import av  # noqa: F401  # before torchcodec, which may share its libraries
import pytest
import torch
import webdataset as wds
from clips import grey_of, stairs, write_clip

from uniflow.data import ClipFolder, ClipShards
from uniflow.data.video.codec import PROBED, check_start, import_torchcodec
from uniflow.data.video.files import VideoBytes, VideoReadError
from uniflow.data.video.reading import read_clip, read_frames, video_info

CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    for kind, codec in CODECS.items():
        write_clip(folder / f"a.{kind}", stairs(), codec=codec)
    return folder


def usable() -> bool:
    try:
        import_torchcodec()
    except ImportError:
        return False
    return True


needs_torchcodec = pytest.mark.skipif(not usable(), reason="torchcodec or FFmpeg's libraries are not installed")


def fake(major: int | None) -> dict[str, types.ModuleType]:
    package, decoders = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
    package.ffmpeg_major_version, package.decoders = major, decoders  # type: ignore[attr-defined]
    return {"torchcodec": package, "torchcodec.decoders": decoders}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"torchcodec": None},
            "needs torchcodec: pip install torchcodec, and FFmpeg's libraries; or set backend: pyav",
        ),
        (fake(None), "torchcodec cannot load FFmpeg's shared libraries, .*install FFmpeg .*or set backend: pyav"),
    ],
)
def test_what_is_missing_is_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: dict[str, Any], message: str
) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    calls = [
        lambda: list(read_frames(files / "a.mp4", backend="torchcodec")),
        lambda: video_info(files / "a.mp4", "torchcodec"),
        lambda: ClipFolder(str(files), backend="torchcodec").setup(),
        lambda: ClipShards("a.tar", "b.tar", "c.tar", backend="torchcodec").setup(),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) <= 320
    assert len(list(read_frames(files / "a.mp4"))) == 12


def test_an_unknown_backend_is_refused(files: Path) -> None:
    backend: Any = "opencv"
    for call in (
        lambda: read_frames(files / "a.mp4", backend=backend),
        lambda: ClipFolder(str(files), backend=backend),
        lambda: ClipShards("a.tar", "b.tar", "c.tar", backend=backend),
    ):
        with pytest.raises(ValueError, match="backend must be pyav or torchcodec, not 'opencv'"):
            call()


@pytest.mark.parametrize("kind", CODECS)
def test_files_begin_as_their_containers_do(files: Path, kind: str) -> None:
    """libav guesses the kind by what a file begins with: none may be a list of addresses."""
    containers = {"mp4": "mov", "mov": "mov", "mkv": "matroska", "webm": "matroska", "avi": "avi"}
    whole = (files / f"a.{kind}").read_bytes()[:PROBED]
    check_start(whole, containers[kind], "x")
    dash = b"<MPD profiles='urn:mpeg:dash:profile:isoff-live:2011'>"
    lists = [b"", b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/x.ts\n", b"v=0\nc=IN IP4 127.0.0.1\n", dash]
    lists += [b"\x1a\x45\xdf\xa3" + dash, b"RIFFxxxxAVI " + dash, b"GIF8" + dash, b"xxxxftyp" + dash]
    for text in lists:
        with pytest.raises(VideoReadError, match=rf"cannot be read as {containers[kind]}|the file is empty"):
            check_start(text, containers[kind], "x")


@needs_torchcodec
@pytest.mark.parametrize("kind", CODECS)
def test_the_frames_are_those_of_pyav(files: Path, kind: str) -> None:
    path = files / f"a.{kind}"
    ours, theirs = (list(read_frames(path, backend=backend)) for backend in ("pyav", "torchcodec"))
    assert [frame.time for frame in theirs] == pytest.approx([frame.time for frame in ours], abs=2e-3)
    a, b = (torch.stack([frame.image for frame in frames]).int() for frames in (ours, theirs))
    assert (a - b).abs().max() <= 3  # two versions of FFmpeg may round colours differently
    assert theirs[0].image.dtype == torch.uint8
    about = video_info(path, "torchcodec")
    assert (about.rate, about.frames, about.sound) == (pytest.approx(10), 12, False)
    for source in (path, VideoBytes(f"x.{kind}", path.read_bytes())):
        read = lambda count, **options: grey_of(read_clip(source, count, backend="torchcodec", **options))  # noqa: B023, E731
        assert read(4, stride=3) == [0, 3, 6, 9]
        assert read(3, start=0.5) == [5, 6, 7]
        assert read(4, rate=10 / 3, start=0.1) == [1, 4, 7, 10]


@needs_torchcodec
def test_rotation_and_sound_are_seen(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", stairs(3), sound="aac")
    assert video_info(path, "torchcodec").sound
    data = bytearray(write_clip(tmp_path / "plain.mp4", stairs(3)).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    ours, theirs = (read_clip(tmp_path / "turned.mp4", 3, backend=b).int() for b in ("pyav", "torchcodec"))
    assert ours.shape == theirs.shape == (3, 3, 64, 48)
    assert (ours - theirs).abs().max() <= 3


@needs_torchcodec
def test_what_cannot_be_read_is_one_line(files: Path, tmp_path: Path) -> None:
    noise = torch.randint(0, 255, (40, 3, 48, 64), dtype=torch.uint8)
    for kind in ("avi", "mkv"):
        whole = write_clip(tmp_path / f"whole.{kind}", noise, codec=CODECS[kind]).read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(VideoReadError, match=rf"cut\.{kind}: breaks off after \d+ of 40 frames"):
            list(read_frames(tmp_path / f"cut.{kind}", backend="torchcodec"))
    (tmp_path / "half.mp4").write_bytes((files / "a.mp4").read_bytes()[:700])
    with pytest.raises(VideoReadError, match=r"half\.mp4: cannot be read as mov") as error:
        list(read_frames(tmp_path / "half.mp4", backend="torchcodec"))
    assert "\n" not in str(error.value)
    with pytest.raises(VideoReadError, match=r"64 x 48 pixels, more than 1,000"):
        list(read_frames(files / "a.mp4", max_pixels=1000, backend="torchcodec"))
    with pytest.raises(VideoReadError, match=r"cannot be opened \(No such file"):
        list(read_frames(tmp_path / "gone.mp4", backend="torchcodec"))


@needs_torchcodec
def test_data_modules_give_the_clips_of_pyav(files: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.mp4").write_bytes((files / "a.mp4").read_bytes())
        with wds.TarWriter(str(tmp_path / f"{split}.tar")) as tar:
            tar.write({"__key__": "a", "mp4": (files / "a.mp4").read_bytes()})
    batches = []
    for backend in ("pyav", "torchcodec"):
        common: dict[str, Any] = {"size": 32, "length": 4, "batch_size": 1, "num_workers": 0, "backend": backend}
        shards = ClipShards(*(str(tmp_path / f"{split}.tar") for split in ("train", "val", "test")), **common)
        for data in (ClipFolder(str(tmp_path), **common), shards):
            assert data.crops().get("backend") == (None if backend == "pyav" else "torchcodec")
            batches.append(next(iter(data.test_dataloader()))["image"].int())
    assert all((batch - batches[0]).abs().max() <= 3 for batch in batches)
