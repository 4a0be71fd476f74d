"""The tools beside training, on real files."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.pictures import comparison_picture
from uniflow.quickstart import RUNS
from uniflow.reconstruct import reconstruct
from uniflow.report import report


@pytest.fixture
def tokenizer(tmp_path):
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    folder = tmp_path / "tokenizer"
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def test_reconstruct_writes_pairs_and_skips_what_it_cannot_read(tmp_path, tokenizer, capsys):
    Image.fromarray(photographs.chelsea()[:61, :83]).save(tmp_path / "cat.png")
    Image.new("L", (5, 3), 77).save(tmp_path / "dot.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    files = [tmp_path / name for name in ("cat.png", "broken.png", "dot.png")]
    reconstruct(files, tokenizer, tmp_path / "out", size=0)
    printed = capsys.readouterr()
    assert "cat.png: PSNR" in printed.out
    assert "SSIM nan" in printed.out  # 3 pixels have no window of 11
    assert "mean of 2" in printed.out
    assert "skipped" in printed.err
    assert "broken.png" in printed.err
    with Image.open(tmp_path / "out" / "cat.png") as picture:
        assert picture.size == (2 * 83 + 6, 61 + 4)
    reconstruct([tmp_path / "cat.png"], tokenizer, tmp_path / "small", size=32)
    assert ", 44 x 32 ->" in capsys.readouterr().out


def test_reconstruct_takes_folders_steps_and_seeds(tmp_path, tokenizer, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.fromarray(photographs.astronaut()[100:164, 100:164]).save(tmp_path / "photos" / name)

    def lines(**kwargs):
        reconstruct([tmp_path / "photos"], tokenizer, tmp_path / "out", **kwargs)
        return capsys.readouterr().out

    assert lines() == lines()
    assert lines(steps=3) != lines()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_bad_calls_give_one_line(tmp_path, tokenizer, capsys):
    for arguments, message in [
        (["reconstruct", "nowhere.png", "--tokenizer", str(tokenizer)], "none of the 1 given paths"),
        (["reconstruct", "nowhere.png", "--tokenizer", str(tmp_path / "none")], "no tokenizer at"),
        (["reconstruct", "nowhere.png", "--tokenizer", "nothing"], "no tokenizer at nothing"),
        (["report", str(tmp_path)], "has no test_results.json"),
        (["summary", str(tmp_path / "none")], "no tokenizer at"),
        (["quickstart", "--config", "none.yaml"], "no recipe none.yaml"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_summary_prints_each_part(tokenizer, capsys):
    assert main(["summary", str(tokenizer), "--image_size", "64"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("SceneViT", "MLPBottleneck", "PatchFlowDecoder", "GFLOP", "total"))


def test_report_puts_runs_side_by_side(tmp_path):
    rows = {"original", "teacher", "student", "reconstruction, 1 step"}
    for number, name in enumerate(("a", "b")):
        (tmp_path / name / "images").mkdir(parents=True)
        results = {"test/psnr": 20.0 + number, "test/probe_student": 0.5, "test_layers/cosine_1": 0.25}
        (tmp_path / name / "test_results.json").write_text(json.dumps(results))
        images = {row: torch.full((2, 3, 16, 16), 40 * number, dtype=torch.uint8) for row in rows}
        save_file(images, tmp_path / name / "images" / "test.safetensors")
    report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| a | 50.0% | 20.00 dB |" in text
    assert "| b | 50.0% | **21.00 dB** |" in text
    assert "| a | 0.2500 |" in text
    with Image.open(tmp_path / "report" / "comparison.png") as picture:
        # Originals and teacher once, then two rows a run, each enlarged twice.
        assert picture.height == 2 + 6 * (32 + 2)


def test_the_picture_shows_every_row():
    shades = {"original": 10, "teacher": 60, "reconstruction, 1 step": 120, "student": 200}
    rows = {name: torch.full((1, 3, 8, 8), value, dtype=torch.uint8) for name, value in shades.items()}
    picture = comparison_picture({"run": rows}, scale=2)
    column = [picture.getpixel((picture.width - 8, 2 + 18 * row + 8))[0] for row in range(4)]
    assert column == [10, 60, 120, 200]


def test_quickstart_runs_the_three_ways_and_can_be_continued(tmp_path, monkeypatch, capsys):
    from cli_fixtures import REPOSITORY

    monkeypatch.chdir(REPOSITORY)
    tiny = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.train_length", "16"]
    tiny += ["--data.val_length", "24", "--data.test_length", "24", "--data.batch_size", "8", "--data.num_workers", "0"]
    tiny += ["--model.decoder.width", "32", "--model.decoder.num_heads", "2", "--model.decoder.flow_depth", "1"]
    tiny += ["--trainer.precision", "32-true"]
    arguments = ["quickstart", "--out", str(tmp_path / "q"), "--overrides", json.dumps(tiny)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("$ uniflow fit") == printed.count("$ uniflow test") == 3
    for name in RUNS:
        results = json.loads((tmp_path / "q" / name / "test_results.json").read_text())
        assert {"test/psnr", "test/psnr_steps4", "test/probe_teacher", "test/probe_student"} <= results.keys()
    frozen = json.loads((tmp_path / "q" / "frozen_encoder" / "test_results.json").read_text())
    assert frozen["test/cosine"] == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "q" / "report" / "comparison.png").is_file()
    with Image.open(tmp_path / "q" / "report" / "curves.png") as picture:
        assert picture.size == (1200, 900)
    assert main(arguments) == 0
    assert "$ uniflow fit" not in capsys.readouterr().out
