"""Shards of clips: the frames of each file, what belongs to it, what is skipped; order, processes, resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import webdataset as wds
from clips import grey_of, stairs, write_clip, write_folder

from uniflow.data import ClipFolder, ClipShards
from uniflow.data.video.files import VideoBytes, VideoReadError
from uniflow.data.video.reading import read_clip, read_frames, video_info

Batch = dict[str, Any]


def write_gif(path: Path, frames: torch.Tensor) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "rgb8"  # type: ignore[attr-defined]
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")
            container.mux(stream.encode(picture))  # type: ignore[attr-defined]
        container.mux(stream.encode(None))  # type: ignore[attr-defined]
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same stairs in each kind of file, and what cannot be read."""
    folder, frames = tmp_path_factory.mktemp("files"), stairs(height=32, width=48)
    codecs = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9"}
    found = {kind: write_clip(folder / f"a.{kind}", frames, codec=c).read_bytes() for kind, c in codecs.items()}
    found["gif"] = write_gif(folder / "a.gif", frames).read_bytes()
    found["short"] = write_clip(folder / "short.mp4", frames[:3]).read_bytes()
    noise = torch.randint(0, 255, (30, 3, 32, 48), dtype=torch.uint8)
    whole = write_clip(folder / "noise.avi", noise, codec="mpeg4").read_bytes()
    found["cut"] = whole[: len(whole) // 2]
    return found


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "webm", "gif"])
def test_a_file_in_memory_gives_its_frames(files: dict[str, bytes], kind: str) -> None:
    source = VideoBytes(f"shard.tar:a.{kind}", files[kind])
    assert grey_of(frame.image for frame in read_frames(source)) == list(range(12))
    assert video_info(source).rate == pytest.approx(10)
    assert grey_of(read_clip(source, 3, start=0.5, stride=2)) == [5, 7, 9]


def test_what_is_no_video_is_named(files: dict[str, bytes]) -> None:
    for name, data, reason in (
        ("a.mp4", b"", "the file is empty"),
        ("a.mp4", b"#EXTM3U\nhttp://127.0.0.1/x.ts\n" * 9, "cannot be read as mov"),
        ("a.mp4", files["gif"], "cannot be read as mov"),
        ("a.txt", b"x", "not a known kind of video"),
    ):
        with pytest.raises(VideoReadError, match=rf"^shard:{name}: {reason}"):
            list(read_frames(VideoBytes(f"shard:{name}", data)))


def write(path: Path, samples: dict[str, Batch]) -> None:
    with wds.TarWriter(str(path)) as tar:
        for key, fields in samples.items():
            tar.write({"__key__": key, **fields})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    """Two training shards of six clips, and one of four for validation and test, of several kinds."""
    folder, kinds = tmp_path_factory.mktemp("shards"), ("mp4", "avi", "webm")
    for name, count in (("train-0", 6), ("train-1", 6), ("val-0", 4), ("test-0", 4)):
        samples = {
            f"{name}_{i}": {kinds[i % 3]: files[kinds[i % 3]], "cls": str(i % 2), "txt": f"{name} {i}", "jpg": b"thumb"}
            for i in range(count)
        }
        write(folder / f"{name}.tar", samples)
    return folder


class AsRank(ClipShards):
    """A data module that takes itself for one of several processes."""

    rank = 0
    world_size = 1


def module(folder: Path, rank: int = 0, world_size: int = 1, **kwargs: Any) -> AsRank:
    splits = {split: str(folder / f"{split}-*.tar") for split in ("train", "val", "test")}
    settings = {"size": 16, "length": 4, "num_workers": 0, "batch_size": 2, "num_classes": 2, "caption": "txt"}
    data = AsRank(**{**splits, **settings, "shuffle_buffer": 4, **kwargs})
    data.rank, data.world_size = rank, world_size
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_all_frames_of_their_clips(shards: Path, workers: int) -> None:
    data = module(shards, num_workers=workers, resample=False)
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    starts = set()
    for batch in batches:
        assert batch["image"].shape == (8, 3, 16, 16)
        assert batch["frames"] == 4
        assert batch["caption"][:4] == [batch["caption"][0]] * 4
        assert batch["label"].tolist() == [int(text[-1]) % 2 for text in batch["caption"]]
        for clip in batch["image"].unflatten(0, (2, 4)):
            first, *others = grey_of(clip)
            assert others == [first + 1, first + 2, first + 3]
            starts.add(first)
    assert len(starts) > 2
    captions = [text for batch in batches for text in batch["caption"][::4]]
    assert sorted(captions) == [f"train-{s} {i}" for s in range(2) for i in range(6)]
    (first, second) = data.val_dataloader()
    assert first["name"][:5] == [f"val-0_0 frame {k:03d}" for k in range(4)] + ["val-0_1 frame 000"]
    assert grey_of(second["image"]) == [4, 5, 6, 7] * 2  # the middle
    assert data.crops() == {"size": 16, "center_crop": 0.875, "length": 4, "stride": 1, "rate": None}


def test_every_setting_changes_the_frames(shards: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    def frames(**settings: Any) -> list[int]:
        return grey_of(next(iter(module(shards, **settings).test_dataloader()))["image"])

    assert frames(length=6)[:6] == [3, 4, 5, 6, 7, 8]
    assert frames(stride=2)[:4] == [2, 4, 6, 8]
    assert frames(rate=5.0)[:4] == [2, 4, 6, 8]
    assert frames() == frames(seed=1)
    write(tmp_path / "val-0.tar", {"a": {"mp4": files["mp4"], "gif": files["short"]}})
    two = {"val": str(tmp_path / "val-0.tar"), "num_classes": None, "caption": None}
    with pytest.raises(ValueError, match=r"the sample a has 2 clips \(gif, mp4\).*with clip_field"):
        list(module(shards, **two).val_dataloader())
    assert len(list(module(shards, **two, clip_field="mp4").val_dataloader())) == 1
    for settings in ({"length": 0}, {"stride": 0}, {"rate": -1.0}):
        with pytest.raises(ValueError, match="AsRank: "):
            module(shards, **settings)


def test_shards_give_what_a_folder_gives(shards: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.mp4").write_bytes(files["mp4"])
        (tmp_path / split / "a.txt").write_text("said")
    folder = ClipFolder(str(tmp_path), 16, length=4, num_workers=0, batch_size=1, caption="txt")
    whole = next(iter(folder.val_dataloader()))
    ours = next(iter(module(shards, batch_size=1).val_dataloader()))
    assert torch.equal(whole["image"], ours["image"])
    assert whole["caption"] == ["said"] * 4


def test_two_processes_share_the_clips(shards: Path) -> None:
    modules = [module(shards, rank, 2, batch_size=1) for rank in range(2)]
    seen = [batch["caption"][0] for data in modules for batch in data.test_dataloader()]
    assert sorted(seen) == [f"test-0 {i}" for i in range(4)]
    dealt = [module(shards, rank, 2, resample=False).train_dataloader() for rank in range(2)]
    first, second = ({text for batch in loader for text in batch["caption"]} for loader in dealt)
    assert len(first) == len(second) == 6
    assert not first & second


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    """A shard in which only every other clip can be read."""
    bad = {
        "empty": {"mp4": b""},
        "text": {"webm": b"#EXTM3U\nhttp://127.0.0.1/x.ts\n"},
        "cut": {"avi": files["cut"]},
        "short": {"mp4": files["short"]},
        "nothing": {"jpg": b"thumb"},
    }
    samples: dict[str, Batch] = {}
    for name, fields in bad.items():
        samples |= {name: {**fields, "txt": name}, f"good_{name}": {"mp4": files["mp4"], "txt": f"good {name}"}}
    folder = tmp_path_factory.mktemp("odd")
    for split in ("train", "val", "test"):
        write(folder / f"{split}-0.tar", samples)
    return folder


def test_broken_clips_are_skipped_counted_and_named(odd: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(odd, num_classes=None, length=12, max_pixels=48 * 32)
    batches = list(data.val_dataloader())
    seen = [text for batch in batches for text in batch["caption"][::12]]
    assert seen == ["good empty", "good text", "good cut", "good short", "good nothing"]
    assert data.skip_log.counts() == {"val": 5, "train": 1}  # a training shard was counted
    for reason in (
        "empty\tthe file is empty", "text\tcannot be read as matroska", "cut\tbreaks off after",
        "short\ttoo short: 3 of the 12 frames", "nothing\tno clip among ['jpg', 'txt']",
    ):  # fmt: skip
        assert f"val-0.tar:{reason}" in caplog.text
    small = module(odd, num_classes=None, max_pixels=1000)
    with pytest.raises(ValueError, match="not one image can be read"):
        list(small.val_dataloader())
    assert "48 x 32 pixels, more than 1,000" in caplog.text


def test_training_goes_on_after_the_clips_that_were_seen(odd: Path) -> None:
    """Whether the clip that breaks off is readable depends on where training begins in it."""
    settings: Batch = {"num_classes": None, "resample": False, "epoch_length": 20, "length": 8}

    def epoch(seen: int = 0) -> list[tuple[torch.Tensor, list[str]]]:
        data = module(odd, **settings)
        data.position.samples = 2 * seen
        return [(batch["image"], batch["caption"]) for batch in data.train_dataloader()]

    whole = epoch()
    assert len(whole) == 10
    for seen in (1, 4, 7):
        rest = epoch(seen)
        assert [captions for _, captions in rest] == [captions for _, captions in whole[seen:]]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole[seen:], strict=True))


def test_without_pyav_one_line_says_what_to_install(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'uniflow\[video\]'"):
        module(shards).setup()


def test_a_folder_takes_gifs_as_images(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_folder(tmp_path / "frames", stairs(5))
    (tmp_path / "a.gif").write_bytes(files["gif"])
    assert ClipFolder(str(tmp_path)).walk(tmp_path).names.strings() == ["frames"]
