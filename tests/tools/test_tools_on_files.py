"""The tools beside training, on real files."""

import itertools
import json
import re

import pytest
import torch
from cli_fixtures import REPOSITORY
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.pictures.curves import read_curves
from uniflow.pictures.drawing import LARGE, SMALL, comparison_picture
from uniflow.tools.quickstart import RUNS
from uniflow.tools.reconstruct import reconstruct
from uniflow.tools.report import report

# What Lightning says that a user can do nothing about, or that stands elsewhere.
NOT_FOR_USERS = ("Seed set", "Tip:", "TPU", "litlogger", "LeafSpec", "`Trainer.fit` stopped", "AMP", "DataLoader 0")


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
        (["quickstart", "--config", "none.yaml"], "there is no file 'none.yaml'"),
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
    assert "- PSNR, 1 step: how near" in text
    with Image.open(tmp_path / "report" / "comparison.png") as picture:
        # Originals and the first run large, then the teacher and both runs.
        assert [height for _, height in bands(picture, -40)] == [256, 256, 128, 128, 128]


def test_report_prints_numbers_and_what_they_mean_but_no_markup(tmp_path, capsys):
    for name, psnr in (("recipe", 28.5), ("control_of_it", 21.0)):
        (tmp_path / name).mkdir()
        results = {"test/psnr": psnr, "test/ssim": 0.5, "test/probe_student": 0.5, "test_layers/cosine_1": 0.25}
        (tmp_path / name / "test_results.json").write_text(json.dumps(results))
    report([tmp_path / "recipe", tmp_path / "control_of_it"], tmp_path / "report")
    printed = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    assert ["run", "recipe", "control_of_it"] in lines
    assert ["PSNR, 1 step", "28.50 dB *", "21.00 dB"] in lines
    assert ["SSIM, 1 step", "0.5000", "0.5000"] in lines
    assert "probe of the student: " in printed
    assert "|" not in printed
    assert "#" not in printed


def bands(picture, x):
    """Colour and height of the tiles that a column of pixels of a comparison goes through."""
    column = [picture.convert("RGB").getpixel((x % picture.width, y))[0] for y in range(picture.height)]
    runs = [(value, len(list(group))) for value, group in itertools.groupby(column)]
    return [(value, length) for value, length in runs if length > 60]


def test_the_comparison_shows_the_first_run_large_and_then_pairs():
    def rows(reconstruction, student):
        shades = {"original": 10, "teacher": 60, "reconstruction, 1 step": reconstruction, "student": student}
        shades |= {"reconstruction, 4 steps": 99}
        return {name: torch.full((8, 3, 8, 8), value, dtype=torch.uint8) for name, value in shades.items()}

    runs = {"recipe": rows(120, 200), "control": rows(130, 210)}
    picture = comparison_picture(runs, first_large=True)
    right, left = -10, -10 - SMALL
    assert bands(picture, right) == [(10, LARGE), (120, LARGE), (60, SMALL), (200, SMALL), (210, SMALL)]
    assert bands(picture, left) == [(10, LARGE), (120, LARGE), (10, SMALL), (120, SMALL), (130, SMALL)]
    equal = comparison_picture(runs)
    assert bands(equal, right) == [(10, LARGE), (60, SMALL), (200, SMALL), (210, SMALL)]
    assert comparison_picture(runs, {"control": "PSNR 21 dB"}).tobytes() != equal.tobytes()


def test_the_quickstarts_controls_change_what_they_should(resolve, monkeypatch):
    monkeypatch.chdir(REPOSITORY)

    def model(name):
        return resolve("-c", "configs/quickstart.yaml", *RUNS[name][1])["model"]["init_args"]

    recipe = model("adaptive")
    assert next(iter(RUNS)) == "adaptive"
    assert recipe["start"]["class_path"].endswith("Regression")
    assert recipe["distillation_weight"] > 0
    assert recipe["encoder"]["init_args"]["tune"] == "full"
    assert recipe["bottleneck"]["init_args"]["shortcut"]
    assert recipe["decoder"]["init_args"]["shortcut"]
    assert len(recipe["bottleneck"]["init_args"]["layers"]) > 1

    def without(tree, *keys):
        return {
            key: without(value, *keys) if isinstance(value, dict) else value
            for key, value in tree.items()
            if key not in keys
        }

    for name, changed in {
        "no_distillation": {"distillation_weight": 0, "latent_feature_weight": 0},
        "frozen_encoder": {"tune": "frozen"},
        "last_layer_only": {"layers": "last", "shortcut": False, "start": "random", "latent_feature_weight": 0},
    }.items():
        control = model(name)
        assert without(control, *changed) == without(recipe, *changed)
        found = (
            control
            | control["encoder"]["init_args"]
            | control["decoder"]["init_args"]
            | control["bottleneck"]["init_args"]
        )
        assert {key: found[key] for key in changed} == changed
    assert not model("last_layer_only")["decoder"]["init_args"]["shortcut"]


def test_quickstart_runs_every_control_and_can_be_continued(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    tiny = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.train_length", "32"]
    tiny += ["--data.val_length", "16", "--data.test_length", "16", "--data.batch_size", "8", "--data.num_workers", "0"]
    tiny += ["--model.decoder.width", "32", "--model.decoder.num_heads", "2", "--model.decoder.flow_depth", "1"]
    tiny += ["--model.encoder.weights", "null", "--model.encoder.embed_dim", "64", "--model.encoder.depth", "4"]
    tiny += ["--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1", "--model.start.images", "32"]
    tiny += ["--data.size", "32"]
    arguments = ["quickstart", "--out", str(tmp_path / "q"), "--overrides", json.dumps(tiny)]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    printed = captured.out
    assert printed.count("$ uniflow fit") == printed.count("$ uniflow test") == len(RUNS) == 4
    assert all(what in printed for what, _ in RUNS.values())
    for message in NOT_FOR_USERS:
        assert message not in printed + captured.err, message
    results = {name: json.loads((tmp_path / "q" / name / "test_results.json").read_text()) for name in RUNS}
    for found in results.values():
        assert {"test/psnr", "test/psnr_steps4", "test/probe_teacher", "test/probe_student"} <= found.keys()
    assert results["frozen_encoder"]["test/cosine"] == pytest.approx(1, abs=1e-5)
    logged = {name: read_curves(tmp_path / "q" / name).keys() for name in RUNS}
    assert [name for name in RUNS if "train/distillation" in logged[name]] == ["adaptive", "last_layer_only"]
    assert [name for name in RUNS if "start/psnr" in logged[name]] == ["adaptive", "no_distillation", "frozen_encoder"]
    # Two steps in, only a start from a solution paints.
    assert results["adaptive"]["test/psnr"] > results["last_layer_only"]["test/psnr"] + 5
    assert (tmp_path / "q" / "report" / "comparison.png").is_file()
    with Image.open(tmp_path / "q" / "report" / "curves.png") as picture:
        assert picture.size == (1200, 300 * len(RUNS))
    commands = []
    monkeypatch.setattr("uniflow.tools.quickstart.main", lambda words: commands.append(words[0]) or 0)
    assert main(arguments) == 0
    assert commands == ["report"]
