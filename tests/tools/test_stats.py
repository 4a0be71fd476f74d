"""`uniflow stats`: statistics of a saved tokenizer over the data of a recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import fit_in, write_photos

from uniflow import Tokenizer
from uniflow.data import ImageFolder, Scenes

Uniflow = Callable[..., Any]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fit_in(tmp_path_factory.mktemp("unmeasured"), "--statistics", "null", "--ema.decay", "0")
    assert statistics(run / "tokenizer") is None
    return run


@pytest.fixture
def run(project: Path, run_once: Path) -> Path:
    """A run that measured nothing."""
    shutil.copytree(run_once, "runs/a")
    return Path("runs/a")


def statistics(folder: Path) -> dict[str, Any] | None:
    return json.loads((folder / "config.json").read_text()).get("latent_statistics")


def check(folder: Path, batches: Any) -> None:
    """What the folder says is what its tokenizer's latents have."""
    tokenizer = Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        latents = torch.cat([tokenizer.encode(batch["image"]) for batch in batches])
    values = latents.double().transpose(0, 1).flatten(1)
    found = statistics(folder)
    assert found is not None
    assert found["mean"] == pytest.approx(values.mean(dim=1).tolist(), abs=1e-6)
    assert found["std"] == pytest.approx(values.std(dim=1, correction=0).tolist(), abs=1e-6)
    assert found["count"] == values.shape[1]


def test_of_a_run(uniflow: Uniflow, run: Path) -> None:
    """Its recipe limits validation to one batch; all images are measured, and the weights stay as they are."""
    weights = (run / "tokenizer/model.safetensors").stat()
    card = (run / "tokenizer/README.md").read_text()
    result = uniflow("stats", "-c", "runs/a/config.yaml", "--trainer.precision", "bf16-mixed")
    assert result.code == 0, result.err
    assert "256 latents of 64 channels" in result.out
    check(run / "tokenizer", Scenes(size=32, val_length=16, batch_size=5, num_workers=0).val_dataloader())
    after = (run / "tokenizer/model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    assert (run / "tokenizer/README.md").read_text() == card
    assert "images" not in {p.name for p in Path().iterdir()}  # no callback of the run has run


def test_of_a_folder_and_any_data(uniflow: Uniflow, run: Path, project: Path) -> None:
    photos = write_photos(project / "photos")
    data = ["--data", "ImageFolder", "--data.root", str(photos), "--data.size", "32", "--data.num_workers", "0"]
    result = uniflow("stats", "--tokenizer", str(run / "tokenizer"), *data, "--split", "test", "--max_images", "3")
    assert result.code == 0, result.err
    images = next(iter(ImageFolder(str(photos), size=32, num_workers=0).test_dataloader()))["image"][:3]
    check(run / "tokenizer", [{"image": images}])


def test_of_a_checkpoint(uniflow: Uniflow, run: Path) -> None:
    result = uniflow("stats", "-c", "runs/a/config.yaml", "--ckpt_path", "last", "--tokenizer", "from_last")
    assert result.code == 0, result.err
    check(Path("from_last"), Scenes(size=32, val_length=16, num_workers=0).val_dataloader())
    left, right = (Tokenizer.from_pretrained(path) for path in ("from_last", run / "last.ckpt"))
    assert all(torch.equal(v, right.state_dict()[k]) for k, v in left.state_dict().items())
    assert "SceneViT" in (Path("from_last") / "README.md").read_text().partition("## Recipe")[2]
    assert statistics(run / "tokenizer") is None


def test_every_run_measures_them_unless_it_drops_them(uniflow: Uniflow) -> None:
    assert uniflow("fit", "-c", "recipe.yaml", "--run", "runs/b", "--statistics.max_images", "5").code == 0
    found = statistics(Path("runs/b/tokenizer"))
    assert found is not None
    assert found["count"] == 5 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokeniser", "x"), "there is no option --tokeniser; did you mean --tokenizer?"),
        ((), "name the folder of the tokenizer"),
        (("--tokenizer", "nowhere"), "no tokenizer at nowhere"),
        (("--run", "runs/none"), "no tokenizer at runs/none/tokenizer"),
        (("--run", "runs/none", "--ckpt_path", "last"), "name the folder of the tokenizer"),
        (
            ("--run", "runs/none", "--ckpt_path", "last", "--tokenizer", "x"),
            "there is no checkpoint runs/none/last.ckpt",
        ),
        (("--tokenizer", "nowhere", "--split", "train"), "split"),
    ],
)
def test_errors(uniflow: Uniflow, options: tuple[str, ...], message: str) -> None:
    assert message in uniflow("stats", "-c", "recipe.yaml", *options).error
