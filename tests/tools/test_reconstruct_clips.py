"""`uniflow reconstruct` on clips: pairs, noise, options, sound, broken files, few frames in memory."""

import re

import av
import pytest
import torch
from clips import stairs, write_clip, write_folder
from PIL import Image
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.data.video.reading import read_clip, read_frames, video_info
from uniflow.data.video.writing import VideoWriter
from uniflow.tools import reconstruct_clip as of_clips
from uniflow.tools.reconstruct import reconstruct


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save_pretrained(folder)
    return folder


def still(count=5):
    torch.manual_seed(1)
    return (
        torch.randint(0, 256, (1, 3, 12, 16))
        .float()
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
        .byte()
        .repeat(count, 1, 1, 1)
    )


def numbers(text):
    return {
        "psnr": re.findall(r"frames, PSNR (\S+) dB", text),
        "flicker": [float(value) for value in re.findall(r"flicker (\S+) of 255", text)],
    }


def test_images_and_clips_of_all_kinds_side_by_side(tmp_path, tokenizer, capsys):
    frames = stairs(4)
    for name, codec in (("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.mov", "libx264"), ("d.mkv", "libx264")):
        write_clip(tmp_path / name, frames, codec=codec)
    write_clip(tmp_path / "e.webm", frames, codec="libvpx-vp9")
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "picture.png")
    files = [tmp_path / name for name in ("a.mp4", "picture.png", "b.avi", "c.mov", "d.mkv", "e.webm")]
    reconstruct(files, tokenizer, tmp_path / "out", size=0)
    printed = capsys.readouterr().out
    assert "mean of 6" in printed
    assert "a.mp4: 4 frames, PSNR" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{name}.mp4" for name in "abcde"),
        "picture.png",
    ]
    model = Tokenizer.from_pretrained(tokenizer)
    for file in files[2:]:
        original = read_clip(file, 4)
        written = read_clip(tmp_path / "out" / f"{file.stem}.mp4", 4)
        assert written.shape == (4, 3, 48, 64 + of_clips.GAP + 64)
        assert (written[..., :64].float() - original.float()).abs().mean() < 3
        noise = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
        expected = model.reconstruct(original, noise=noise).detach()  # as an image with the same seed
        # 4:2:0 keeps the colours of noise at half their resolution only.
        grey = torch.stack([written[..., -64:].float().mean(1).flatten(), expected.mean(1).flatten()])
        assert torch.corrcoef(grey)[0, 1] > 0.8
        assert video_info(tmp_path / "out" / f"{file.stem}.mp4").rate == pytest.approx(10)


def test_shared_noise_stands_still_and_independent_noise_flickers(tmp_path, tokenizer, capsys):
    write_folder(tmp_path / "still", still())

    def flickers(*options):
        command = ["reconstruct", str(tmp_path / "still"), "--folders", "clips", "--tokenizer", str(tokenizer)]
        assert main([*command, "--out", str(tmp_path / "out"), "--size", "0", *options]) == 0
        return numbers(capsys.readouterr().out)["flicker"][0]

    assert flickers() == flickers("--noise", "shared") == 0
    assert flickers("--noise", "independent") > 1
    assert flickers("--noise", "independent", "--steps", "4") != flickers("--noise", "independent")


def test_options_change_what_is_written(tmp_path, tokenizer, capsys):
    write_clip(tmp_path / "a.mp4", stairs(6))

    def run(**options):
        reconstruct([tmp_path / "a.mp4"], tokenizer, tmp_path / "out", **({"size": 0} | options))
        return numbers(capsys.readouterr().out)["psnr"]

    assert run() == run() != run(steps=3)
    assert run(seed=1) != run()
    run(frames=2)
    assert video_info(tmp_path / "out" / "a.mp4").frames == 2
    run(size=32)
    assert read_clip(tmp_path / "out" / "a.mp4", 6).shape[-2:] == (32, 43 + of_clips.GAP + 43)
    with pytest.raises(ValueError, match="--frames must be at least 1"):
        run(frames=0)
    with pytest.raises(ValueError, match="would be written over"):
        reconstruct([tmp_path / "a.mp4"], tokenizer, tmp_path)


def test_a_folder_is_files_or_one_clip(tmp_path, tokenizer):
    folder = write_folder(tmp_path / "frames", stairs(3))
    write_clip(folder / "film.mp4", stairs(2))
    reconstruct([folder], tokenizer, tmp_path / "files", size=0)
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == ["film.mp4", "frame0.png", "frame1.png", "frame2.png"]
    reconstruct([folder], tokenizer, tmp_path / "clip", size=0, folders="clips")
    assert video_info(tmp_path / "clip" / "frames.mp4").frames == 3


def test_pieces_of_any_size_give_the_same(tmp_path, tokenizer, capsys, monkeypatch):
    write_folder(tmp_path / "a", stairs(7))

    def run(noise):
        reconstruct([tmp_path / "a"], tokenizer, tmp_path / "out", size=0, folders="clips", noise=noise)
        return capsys.readouterr().out

    whole = run("shared"), run("independent")
    sizes = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, images: sizes.append(len(images)) or encode(self, images))
    monkeypatch.setattr(of_clips, "PIXELS", 48 * 64 * 3)
    assert (run("shared"), run("independent")) == whole
    assert sizes == [3, 3, 1] * 2  # never the whole clip


def sound(path):
    with av.open(str(path)) as container:
        return container.streams.audio[0].codec_context.name, [
            bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size
        ]


def test_sound_is_kept(tmp_path, tokenizer):
    write_clip(tmp_path / "a.mp4", stairs(10), sound="aac")
    write_clip(tmp_path / "plain.mov", stairs(10), sound="pcm_s16le")
    reconstruct([tmp_path / "a.mp4", tmp_path / "plain.mov"], tokenizer, tmp_path / "out", size=0)
    assert sound(tmp_path / "out" / "a.mp4") == sound(tmp_path / "a.mp4")  # not one byte is another
    assert sound(tmp_path / "out" / "plain.mp4")[0] == "aac"
    with av.open(str(tmp_path / "out" / "plain.mp4")) as container:
        waves = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert sum(wave.shape[-1] for wave in waves) == pytest.approx(48000, rel=0.06)
    assert 0.5 < abs(waves[len(waves) // 2]).max() < 1.2
    reconstruct([tmp_path / "a.mp4"], tokenizer, tmp_path / "short", size=0, frames=4)
    assert len(sound(tmp_path / "short" / "a.mp4")[1]) == pytest.approx(0.4 * 48000 / 1024, abs=2)


def test_broken_clips_are_written_as_far_as_they_go(tmp_path, tokenizer, capsys):
    noise = torch.randint(0, 255, (30, 3, 48, 64), dtype=torch.uint8)
    data = write_clip(tmp_path / "whole.avi", noise, codec="mpeg4").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("not a film")
    reconstruct([tmp_path / "cut.avi", tmp_path / "text.mp4"], tokenizer, tmp_path / "out", size=0)
    printed = capsys.readouterr()
    assert re.search(r"cut\.avi: .*; \d+ frames are written", printed.err)
    assert re.search(r"skipped .*text\.mp4: cannot be read as mov", printed.err)
    assert 5 < len(list(read_frames(tmp_path / "out" / "cut.mp4"))) < 25
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cut.mp4"]  # no half file is left
    assert main(["reconstruct", str(tmp_path / "text.mp4"), "--tokenizer", str(tokenizer)]) == 2
    assert "none of the 1 given paths" in capsys.readouterr().err


def test_quality_and_times_of_the_writer(tmp_path):
    frames, sizes = torch.randint(0, 256, (4, 3, 31, 33), dtype=torch.uint8), []
    for quality in (1, 40):
        with VideoWriter(tmp_path / "a.mp4", 10, quality=quality) as writer:
            for time, frame in zip((0, 0.1, 0.35, 0.4), frames, strict=True):
                writer.write(frame, time)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        read = list(read_frames(tmp_path / "a.mp4"))
        assert [frame.time for frame in read] == pytest.approx([0, 0.1, 0.35, 0.4], abs=1e-3)
        assert read[0].image.shape == (3, 32, 34)  # 4:2:0 needs even sides
    assert sizes[0] > 2 * sizes[1]
    with pytest.raises(ValueError, match="quality must be in 0"):
        VideoWriter(tmp_path / "b.mp4", 10, quality=60)


def test_a_temporal_decoder_sees_the_past_across_pieces(tmp_path, tokenizer, capsys, monkeypatch):
    model = Tokenizer.from_pretrained(tokenizer)
    decoder = FLOW(model.bottleneck.spec, temporal_window=3)
    decoder.load_state_dict(model.decoder.state_dict(), strict=False)
    Tokenizer(model.encoder, model.bottleneck, decoder).save_pretrained(tmp_path / "fresh")
    torch.manual_seed(3)
    decoder.global_stage.temporal[0].projection.weight.data.normal_()
    Tokenizer(model.encoder, model.bottleneck, decoder).save_pretrained(tmp_path / "learned")
    write_folder(tmp_path / "a", stairs(7))

    def run(of, **options):
        options = {"size": 0, "folders": "clips"} | options
        reconstruct([tmp_path / "a"], of, tmp_path / "out", **options)
        return capsys.readouterr().out

    assert run(tmp_path / "fresh") == run(tokenizer)
    whole = run(tmp_path / "learned")
    assert whole != run(tokenizer)
    with pytest.raises(ValueError, match="--tile with a temporal decoder needs --global_context true"):
        run(tmp_path / "learned", tile=2)
    in_tiles = run(tmp_path / "learned", tile=6, overlap=0, global_context=True)
    assert numbers(in_tiles)["psnr"] == numbers(whole)["psnr"]
    monkeypatch.setattr(of_clips, "PIXELS", 48 * 64 * 3)
    assert run(tmp_path / "learned") == whole
