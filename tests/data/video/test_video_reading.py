"""Video files and folders of frames: frames, times, choices, rotation, broken files."""

import struct
import sys

import pytest
import torch
from clips import grey_of, stairs, write_clip, write_folder

from uniflow.data.video.files import VideoReadError
from uniflow.data.video.reading import natural, read_clip, read_frames, video_info


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames = stairs()
    write_clip(folder / "a.mp4", frames)
    write_clip(folder / "a.mov", frames)
    write_clip(folder / "a.avi", frames, codec="mpeg4")
    write_clip(folder / "a.mkv", frames)
    write_clip(folder / "a.webm", frames, codec="libvpx-vp9")
    write_folder(folder / "a", frames)
    return folder


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv", "a.webm", "a"])
def test_frames_and_times(files, name):
    frames = list(read_frames(files / name))
    step = 0.04 if name == "a" else 0.1
    assert [frame.time for frame in frames] == pytest.approx([step * k for k in range(12)], abs=2e-3)
    images = torch.stack([frame.image for frame in frames])
    assert images.dtype == torch.uint8
    assert (images.int() - stairs().int())[..., 40:].abs().max() <= (0 if name == "a" else 6)
    info = video_info(files / name)
    assert (info.rate, info.frames, info.sound) == (pytest.approx(1 / step), 12, False)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.webm", "a"])
def test_stride_length_start_and_rate_choose_frames(files, name):
    own = video_info(files / name).rate
    assert grey_of(read_clip(files / name, 4, stride=3)) == [0, 3, 6, 9]
    assert grey_of(read_clip(files / name, 3, start=5 / own)) == [5, 6, 7]
    assert grey_of(read_clip(files / name, 5, rate=own * 2)) == [0, 0, 1, 1, 2]
    assert grey_of(read_clip(files / name, 4, rate=own / 3, start=1 / own)) == [1, 4, 7, 10]
    assert grey_of(frame.image for frame in read_frames(files / name, rate=own / 5)) == [0, 5, 10]


def test_names_of_frames_sort_naturally():
    assert sorted(["f10.png", "f2.png", "f1b.png", "f1.png"], key=natural) == ["f1.png", "f1b.png", "f2.png", "f10.png"]


def test_rotation_metadata_turns_frames(tmp_path):
    """What a telephone held upright writes: (x, y) of the stored frame is shown at (height - y, x)."""
    data = bytearray(write_clip(tmp_path / "plain.mp4", stairs(3)).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = read_clip(tmp_path / "turned.mp4", 3)
    assert turned.shape == (3, 3, 64, 48)
    # The red half was on the left, x small; now it is above.
    assert turned[0, 0, :28].float().mean() > 240
    assert turned[0, 0, 36:].float().mean() < 10


def cut(source, target, share):
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_a_truncated_file_gives_its_frames_and_then_one_line(tmp_path, name):
    noise = torch.randint(0, 255, (40, 3, 48, 64), dtype=torch.uint8)
    whole = write_clip(tmp_path / name, noise, codec="mpeg4" if name == "a.avi" else "libx264")
    broken, read = cut(whole, tmp_path / f"cut_{name}", 0.5), []
    with pytest.raises(VideoReadError, match=rf"cut_{name}: .*") as error:
        read.extend(read_frames(broken))
    assert 5 < len(read) < 35
    assert "\n" not in str(error.value)
    assert len(list(read_frames(broken, length=5))) == 5  # what is asked for is there


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "the file is empty"),
        ("text.avi", b"#EXTM3U\nhttp://127.0.0.1/x.ts\n" * 9, "cannot be read as avi"),
        ("cut.mp4", None, "cannot be read as mov"),
        ("gone.mkv", None, r"cannot be opened \(No such file"),
        ("clip.txt", b"x", "not a known kind of video"),
    ],
)
def test_what_is_not_a_video_is_one_line(tmp_path, files, name, content, reason):
    if name == "cut.mp4":
        cut(files / "a.mp4", tmp_path / name, 0.5)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoReadError, match=reason) as error:
        list(read_frames(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_container_without_pictures(tmp_path):
    write_clip(tmp_path / "a.mp4", stairs(4), sound="aac")
    import av

    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "sound.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert video_info(tmp_path / "a.mp4").sound
    with pytest.raises(VideoReadError, match="has no picture track"):
        list(read_frames(tmp_path / "sound.mp4"))


def test_unknown_codes_are_one_line_and_odd_metadata_is_no_fault(tmp_path, files):
    data = (files / "a.mp4").read_bytes()
    (tmp_path / "code.mp4").write_bytes(data.replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    with pytest.raises(VideoReadError, match="in a code that libav does not know"):
        list(read_frames(tmp_path / "code.mp4"))
    assert b"Lavf" in data
    (tmp_path / "words.mp4").write_bytes(data.replace(b"Lavf", b"La\xff\xfe"))
    assert len(list(read_frames(tmp_path / "words.mp4"))) == 12


def test_broken_folders_are_one_line(tmp_path):
    folder = write_folder(tmp_path / "frames", stairs(3))
    (folder / "frame1.png").write_bytes(b"nothing")
    read = []
    with pytest.raises(VideoReadError, match=r"frames: frame frame1\.png: not an image"):
        read.extend(read_frames(folder))
    assert len(read) == 1
    other = write_folder(tmp_path / "sizes", stairs(2))
    write_folder(tmp_path / "small", stairs(1, 24, 32))
    (tmp_path / "small" / "frame0.png").rename(other / "frame2.png")
    with pytest.raises(VideoReadError, match=r"frame frame2.png has 32 x 24 pixels, frame0.png has 64 x 48"):
        list(read_frames(other))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(VideoReadError, match="a folder without images"):
        video_info(tmp_path / "nothing")


def test_limits(files):
    with pytest.raises(VideoReadError, match=r"64 x 48 pixels, more than 1,000"):
        list(read_frames(files / "a.mp4", max_pixels=1000))
    with pytest.raises(VideoReadError, match="2 frames, fewer than the 3"):
        read_clip(files / "a.mp4", 3, start=1.0)
    for options in ({"stride": 0}, {"length": 0}, {"start": -1.0}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="read_frames: "):
            read_frames(files / "a", **options)


def test_without_pyav_one_line_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'uniflow\[video\]'"):
        list(read_frames(files / "a.mp4"))
    assert len(list(read_frames(files / "a"))) == 12
