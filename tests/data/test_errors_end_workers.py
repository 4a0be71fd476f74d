"""A process that fails ends at once: its workers do not keep it waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import project, uniflow  # noqa: F401
from PIL import Image

SCRIPT = """
import sys, time
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import Dataset
from uniflow.data import ImageDataModule

class Images(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}

class Data(ImageDataModule):
    size = 4

    def make_dataset(self, split):
        return Images()

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        open(sys.argv[1], "w").close()
        raise KeyError("a bug")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def main():
    options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False, devices=1, **options)
    trainer.fit(Model(), Data(batch_size=4, num_workers=3))

def run():
    if sys.argv[2] == "child":
        child = torch.multiprocessing.get_context("fork").Process(target=main)
        child.start()
        child.join()
        sys.exit(child.exitcode)
    main()

run()
"""


@pytest.mark.parametrize("process", ["main", pytest.param("child", marks=pytest.mark.slow)])
def test_an_error_in_validation_ends_the_process_soon(tmp_path: Path, process: str) -> None:
    mark = tmp_path / "mark"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mark), process],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    waited = time.time() - mark.stat().st_mtime
    assert result.returncode == 1
    assert "KeyError: 'a bug'" in result.stderr
    assert "atexit" not in result.stderr
    assert waited < 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", ["val", "train"])
def test_a_split_without_a_readable_image_ends_a_fit_in_one_line(
    uniflow: Callable[..., Any],  # noqa: F811
    project: Path,  # noqa: F811
    split: str,
) -> None:
    for name, count in (("train", 8), ("val", 3), ("test", 3)):
        for i in range(count):
            path = project / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(path)
            if name == split:
                path.write_bytes(b"broken")
    result = uniflow(
        "fit", "-c", "recipe.yaml", "--data", "ImageFolder", "--data.root", "images", "--data.size", "16",
        "--data.num_workers", "1", "--data.batch_size", "2", "--run", "run", "--trainer.max_steps", "2",
    )  # fmt: skip
    lines = [line for line in result.err.splitlines() if "error:" in line]
    assert result.code == 2, result.err
    assert len(lines) == 1
    assert ("not one image can be read" if split == "val" else "no readable image among") in lines[0]
    assert "Traceback" not in result.err
