"""A resumed fit reads exactly the samples that the interrupted one had not reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import Dataset

from uniflow.data.base import ImageDataModule
from uniflow.data.sampler import sample_generator

BATCHES = 6  # an epoch; 25 samples of which the last is dropped


class Numbers(Dataset):
    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.rand((), generator=sample_generator(0, index))
        return {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "index": torch.tensor(int(index)), "noise": noise}


class NumbersModule(ImageDataModule):
    def make_dataset(self, split: str) -> Dataset:
        return Numbers()


class Interrupted(Exception):
    pass


class Tiny(LightningModule):
    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.stop_at = stop_at
        self.seen: list[tuple[int, int, list[int], list[float]]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if self.stop_at == (self.current_epoch, batch_idx):
            raise Interrupted
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist(), batch["noise"].tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, workers: int, *callbacks: Callback, ckpt: Path | None = None, **kwargs: Any) -> list[Any]:
    stop_at = kwargs.pop("stop_at", None)
    model, data = Tiny(stop_at), NumbersModule(batch_size=4, num_workers=workers, seed=3)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_progress_bar=False, callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks), enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    if stop_at:
        with pytest.raises(Interrupted):
            trainer.fit(model, data)
    else:
        trainer.fit(model, data, ckpt_path=str(ckpt) if ckpt else None, weights_only=False if ckpt else None)
    return model.seen


def saver(folder: Path, **kwargs: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **kwargs)


# (callback's arguments, steps at which it has saved, where the fit stops)
WHEN = {
    "mid-epoch": ({"every_n_train_steps": 1}, [1, 4, 8, 11]),
    "last batch of an epoch": ({"every_n_train_steps": BATCHES}, [6, 12]),
    "end of an epoch": ({"save_on_train_epoch_end": True}, [6, 12]),
    "after validation": ({"save_on_train_epoch_end": False}, [6, 12]),
}


@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("when", "workers"),
    [
        *((when, 0) for when in WHEN),
        ("mid-epoch", 2),
        *(pytest.param(when, 2, marks=pytest.mark.slow) for when in WHEN if when != "mid-epoch"),
    ],
)
def test_a_resumed_fit_reads_what_was_left(tmp_path: Path, when: str, workers: int) -> None:
    arguments, steps = WHEN[when]
    whole = fit(tmp_path, 0)
    assert [(epoch, batch) for epoch, batch, *_ in whole] == [(e, b) for e in range(3) for b in range(BATCHES)]
    assert whole[0][2] != whole[BATCHES][2]

    fit(tmp_path, workers, saver(tmp_path, **arguments), stop_at=(2, 1))
    for step in steps[1::2] if (when, workers) == ("mid-epoch", 2) else steps:  # to start workers takes its time
        (ckpt,) = tmp_path.glob(f"step={step}.ckpt")
        assert fit(tmp_path, workers, ckpt=ckpt) == whole[step:], (when, step)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_resume_after_a_validation_in_mid_epoch_and_after_a_crash(tmp_path: Path) -> None:
    whole = fit(tmp_path, 0)
    twice = {"val_check_interval": 0.5}
    fit(tmp_path, 0, saver(tmp_path, every_n_train_steps=3), stop_at=(1, 4), **twice)
    for step in (3, 6, 9):
        assert fit(tmp_path, 0, ckpt=tmp_path / f"step={step}.ckpt", **twice) == whole[step:]
    fit(tmp_path, 0, OnExceptionCheckpoint(tmp_path, filename="crash"), stop_at=(1, 4))
    assert fit(tmp_path, 0, ckpt=tmp_path / "crash.ckpt") == whole[BATCHES + 4 :]


def test_another_seed_in_mid_epoch_is_said(tmp_path: Path) -> None:
    data = NumbersModule(batch_size=4, seed=1)
    with pytest.warns(UserWarning, match="seed 0 -> 1: some samples are seen twice or not at all"):
        data.load_state_dict({"epoch": 0, "samples": 8, "batch_size": 4, "seed": 0, "world_size": 1})


def test_the_position_of_older_checkpoints_is_understood() -> None:
    data = NumbersModule(batch_size=4)
    data.load_state_dict({"epoch": 2, "batches": 3, "batch_size": 2, "seed": 0, "world_size": 4})
    assert (data.position.epoch, data.position.samples) == (2, 24)
