"""A run that is resumed in mid-epoch with another batch size or number of processes reads what was left, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from test_resume import Numbers, NumbersModule, Tiny

from uniflow.data.sampler import TrainSampler

SAMPLES = 25


def shares(world_size: int, start: int = 0, epoch: int = 0) -> list[list[int]]:
    """What each of `world_size` ranks reads after `start` samples of the epoch."""
    samplers = [TrainSampler(Numbers(), world_size, rank, seed=3) for rank in range(world_size)]
    for sampler in samplers:
        sampler.begin = lambda _: (epoch, start)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (1, 3), (4, 2)])
@pytest.mark.parametrize(("batch_size", "batches"), [(2, 0), (2, 1), (1, 5), (3, 2)])
def test_any_number_of_processes_goes_on(before: int, after: int, batch_size: int, batches: int) -> None:
    [whole] = shares(1)
    seen = [i for own in shares(before) for i in own[: batches * batch_size]]
    rest = [i for own in shares(after, len(seen)) for i in own]
    assert sorted(seen) == sorted(whole[: len(seen)])
    assert set(rest) <= set(whole[len(seen) :])
    assert len(rest) == len(set(rest))
    assert SAMPLES - len(seen) - len(rest) < after  # what does not fill all ranks


class Seen(Callback):
    """The samples of each batch, the batches of an epoch as Lightning counts them, and when it validated."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []
        self.totals: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch_idx, batch["index"].tolist()))
        self.totals.append(trainer.num_training_batches)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(len(self.batches))


def fit(folder: Path, batch_size: int, ckpt: Path | None = None, **kwargs: Any) -> Seen:
    seen = Seen()
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[seen, saver],
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    data = NumbersModule(batch_size=batch_size, num_workers=0, seed=3)
    trainer.fit(Tiny(), data, ckpt_path=str(ckpt) if ckpt else None, weights_only=False if ckpt else None)
    return seen


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 17}], ids=["epochs", "steps"])
def test_a_fit_goes_on_with_another_batch_size(tmp_path: Path, limit: dict[str, int]) -> None:
    fit(tmp_path / "whole", 4, **limit)
    orders = [shares(1, epoch=epoch)[0] for epoch in range(3)]
    for step in (2, 5, 6):  # mid-epoch, before the last batch of an epoch, at its end
        epoch, batches = divmod(step, 6)
        for batch_size in (3, 8):
            folder = tmp_path / f"{step} {batch_size}"
            seen = fit(folder, batch_size, tmp_path / "whole" / f"step={step}.ckpt", **limit)
            left = orders[epoch][4 * batches :]
            number = len(left) // batch_size
            got = [indices for _, indices in seen.batches]
            assert got[:number] == [left[k * batch_size : (k + 1) * batch_size] for k in range(number)]
            following = orders[epoch + 1]
            assert got[number] == following[:batch_size], (step, batch_size)
            # Lightning's own count ends the epoch, and validates, where the samples end.
            per_epoch = SAMPLES // batch_size
            assert set(seen.totals) == {per_epoch}
            assert [idx for idx, _ in seen.batches[:number]] == list(range(per_epoch - number, per_epoch))
            assert seen.batches[number][0] == 0
            if number:
                assert seen.validated[0] == number
            # And from there once more, with the first batch size.
            [middle] = folder.glob(f"step={step + number + 1}.ckpt")
            again = fit(folder / "again", 4, middle, **limit)
            assert again.batches[0][1] == following[batch_size : batch_size + 4]


def test_a_change_of_processes_is_inexact_with_shards_only(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from uniflow.data.images.webdataset import WebDataset

    state = {"epoch": 0, "samples": 16, "batch_size": 2, "seed": 0, "world_size": 4, "num_workers": 0}
    NumbersModule(batch_size=4, num_workers=0).load_state_dict(state)
    assert not recwarn.list
    shards = WebDataset("a.tar", "a.tar", "a.tar", batch_size=4, num_workers=2)
    with pytest.warns(UserWarning, match="batch_size 2 -> 4, world_size 4 -> 1, num_workers 0 -> 2: some samples"):
        shards.load_state_dict(state)
    shards.load_state_dict({**state, "samples": 0})  # between two epochs nothing is lost
