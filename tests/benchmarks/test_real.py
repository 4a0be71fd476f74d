"""benchmarks/real.py from end to end: a tiny random DINOv2, noise for photographs, colours for classes."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks import real
from benchmarks.real_callbacks import StepSeconds
from uniflow.encoders import DINOv2

SIZES = {"depth": 2, "embed_dim": 32, "num_heads": 2, "image_size": 28}
# As one file: each option on the command line is another pass over the whole configuration.
TINY = {
    "model": {
        "init_args": {
            "encoder": {"init_args": SIZES},
            "decoder": {"init_args": {"width": 32, "num_heads": 2, "flow_depth": 1}},
            "start": {"class_path": "Regression", "init_args": {"images": 16, "feature_share": 0.1}},
        }
    },
    "data": {"init_args": {"size": 28, "num_workers": 0}},
    "trainer": {"enable_model_summary": False, "precision": "32-true"},
}
KEYS = ["psnr_start", "psnr", "psnr_steps4", "psnr_patch_mean", "cosine_last", "latent_r2_last", "knn_teacher"]
KEYS += ["knn_student", "probe_teacher", "probe_student"]


@pytest.fixture
def parts(tmp_path):
    """What benchmarks/real_parts.py makes, tiny."""
    torch.manual_seed(0)
    encoder = DINOv2("s14", weights=None, **SIZES)
    save_file({k.removeprefix("model."): v for k, v in encoder.state_dict().items()}, tmp_path / "encoder.safetensors")
    draw = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        for number in range(count):
            write(tmp_path / "photographs" / split / f"{number}.png", draw.integers(0, 255, (28, 28, 3)))
    for split in ("train", "test"):
        for number in range(4):
            for name, base in (("dark", 0), ("light", 155)):
                pixels = base + draw.integers(0, 100, (28, 28, 3))
                write(tmp_path / "labelled" / split / name / f"{number}.png", pixels)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def arguments(parts, *more):
    given = ["--encoder", str(parts / "encoder.safetensors"), "--photographs", str(parts / "photographs")]
    return [*given, "--out", str(parts / "out"), *more, "-c", str(parts / "tiny.yaml")]


def patch_mean_psnr(folder):
    """By hand: of 28 pixels, in patches of 14."""
    values = []
    for path in folder.iterdir():
        patches = np.asarray(Image.open(path), float).reshape(2, 14, 2, 14, 3) / 255
        error = ((patches - patches.mean(axis=(1, 3), keepdims=True)) ** 2).mean()
        values.append(10 * math.log10(1 / error))
    return sum(values) / len(values)


def last_line(capfd):
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_from_end_to_end(parts, capfd):
    assert real.main(arguments(parts, "--minutes", "0.004")) == 0
    found = last_line(capfd)
    assert [key for key in KEYS if found[key] is None] == []
    assert found["psnr_patch_mean"] == pytest.approx(patch_mean_psnr(parts / "photographs" / "test"), abs=1e-3)
    assert found["psnr_start"] != found["psnr"]
    assert found["knn_teacher"] == found["probe_teacher"] == 1.0
    assert found["latent_r2_last"] < 1
    assert found == json.loads((parts / "out" / "results.json").read_text())
    assert Image.open(parts / "out" / "real.png").width > 3 * real.SIDE
    assert not (parts / "out" / "warmup").exists()
    # Once more: the run is finished, and is measured again.
    shutil.rmtree(parts / "labelled")
    assert real.main(arguments(parts, "--minutes", "0.004")) == 0
    again = last_line(capfd)
    assert {key: again[key] for key in KEYS[:6]} == {key: found[key] for key in KEYS[:6]}
    assert again["knn_teacher"] is None
    assert real.main(arguments(parts, "--minutes", "2")) == 2
    assert "holds a run of" in capfd.readouterr().err


def test_the_start_is_the_tokenizers_before_its_first_step(parts, capfd):
    """With a learning rate of 0 nothing moves, so the end is the start."""
    assert real.main(arguments(parts, "--steps", "2", "--model.optimizer.lr", "0")) == 0
    found = last_line(capfd)
    assert found["psnr_start"] == pytest.approx(found["psnr"], abs=1e-6)
    assert found["cosine_last"] == pytest.approx(1, abs=1e-3)
    assert found["knn_student"] == found["knn_teacher"]
    assert found["steps"] == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--encoder", "nowhere.safetensors"], "no encoder nowhere.safetensors; fetch it with"),
        (["--photographs", "nowhere"], "no photographs in nowhere/train"),
        (["--config", "nowhere.yaml"], "no recipe nowhere.yaml"),
        (["--minutes", "0"], "must be above 0"),
        (["--labelled", "nowhere"], "nowhere has no folders train and test"),
    ],
)
def test_bad_input_is_one_line(parts, capfd, change, line):
    assert real.main(arguments(parts, *change)) == 2
    err = capfd.readouterr().err
    assert err.startswith("real: error: ")
    assert line in err
    assert err.count("\n") == 1


def test_a_step_is_timed_by_the_median_without_the_first_ones(tmp_path):
    class Trainer:
        default_root_dir = tmp_path

    timer = StepSeconds()
    timer.ends = [0, 50, 90, 100, 102, 104, 114]
    timer.on_train_end(Trainer(), None)
    assert real.read_seconds_per_step(tmp_path) == 2
    timer.ends = [5, 8]
    timer.on_train_end(Trainer(), None)
    assert real.read_seconds_per_step(tmp_path) == 3
