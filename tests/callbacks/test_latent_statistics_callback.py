"""LatentStatistics: what a run measures when it ends, with which weights, and where it goes."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import fit, tiny_scenes, tiny_task
from torch.utils.data import DataLoader

from uniflow import Tokenizer
from uniflow.callbacks import EMA, LatentStatistics, TokenizerExport
from uniflow.training import FusedAdamW


def expected(tokenizer, batches):
    """Mean and standard deviation of all latents, by the definition."""
    with torch.no_grad():
        latents = torch.cat([tokenizer.encode(batch["image"]) for batch in batches]).double()
    values = latents.transpose(0, 1).flatten(1)
    return values.mean(dim=1), values.std(dim=1, correction=0), values.shape[1]


def check(tokenizer, batches):
    mean, std, count = expected(tokenizer, batches)
    found = tokenizer.latent_statistics
    torch.testing.assert_close(torch.tensor(found["mean"], dtype=torch.float64), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found["std"], dtype=torch.float64), std, rtol=1e-6, atol=1e-6)
    assert found["count"] == count


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_exported_tokenizer_has_the_statistics_of_its_own_latents(tmp_path, split):
    """Of the averaged weights, which are the exported ones, and not of the last ones."""
    task, data = tiny_task(optimizer=partial(FusedAdamW, lr=3e-2)), tiny_scenes(val_length=11, test_length=9)
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1000)
    callbacks = [EMA(0.9), LatentStatistics(split), TokenizerExport(), saver]
    fit(task, data, tmp_path, callbacks=callbacks, enable_checkpointing=True)
    exported = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    batches = list(data.val_dataloader() if split == "val" else data.test_dataloader())
    check(exported, batches)


def test_the_raw_weights_differ_from_the_averaged_ones_in_their_statistics(tmp_path):
    """The test above could tell."""
    with_ema, without = (
        tiny_task(optimizer=partial(FusedAdamW, lr=3e-2)),
        tiny_task(optimizer=partial(FusedAdamW, lr=3e-2)),
    )
    fit(with_ema, tiny_scenes(), tmp_path, callbacks=[EMA(0.9), LatentStatistics()])
    fit(without, tiny_scenes(), tmp_path, callbacks=[LatentStatistics()])
    left, right = with_ema.tokenizer.latent_statistics, without.tokenizer.latent_statistics
    assert left["mean"] != pytest.approx(right["mean"], abs=1e-3)


def test_batch_size_and_autocast_do_not_change_them(tmp_path):
    def run(batch_size, precision="32-true"):
        task = tiny_task(optimizer=partial(FusedAdamW, lr=0.0))
        data = tiny_scenes(val_length=13, batch_size=batch_size)
        fit(task, data, tmp_path, steps=1, callbacks=[LatentStatistics()], precision=precision)
        return task.tokenizer.latent_statistics

    reference = run(8)
    for other in (run(3), run(16), run(8, "bf16-mixed")):
        assert other["mean"] == pytest.approx(reference["mean"], abs=1e-6)
        assert other["std"] == pytest.approx(reference["std"], abs=1e-6)
        assert other["count"] == reference["count"] == 13 * 16


def test_the_first_images_only_or_none_at_all(tmp_path):
    task, data = tiny_task(), tiny_scenes(val_length=20)
    fit(task, data, tmp_path, callbacks=[LatentStatistics(max_images=10)])
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])[:10]
    check(task.tokenizer.eval(), [{"image": images}])
    task = tiny_task()
    fit(task, data, tmp_path, callbacks=[LatentStatistics(max_images=0)])
    assert task.tokenizer.latent_statistics is None


def test_a_run_forgets_older_statistics_and_leaves_modes_and_weights_as_they_were(tmp_path):
    task = tiny_task()
    task.configure_model()
    task.tokenizer.set_latent_statistics([0.0] * 8, [1.0] * 8, 1)
    fit(task, tiny_scenes(), tmp_path)
    assert task.tokenizer.latent_statistics is not None  # without the callback nobody knows
    modes, weights = {}, {}

    class Before(LatentStatistics):
        def on_train_end(self, trainer, pl_module):
            modes.update({m: m.training for m in pl_module.modules()})
            weights.update({k: v.clone() for k, v in pl_module.state_dict().items()})
            assert pl_module.tokenizer.latent_statistics is None
            super().on_train_end(trainer, pl_module)
            assert modes == {m: m.training for m in pl_module.modules()}
            assert all(torch.equal(v, weights[k]) for k, v in pl_module.state_dict().items())

    fit(task, tiny_scenes(), tmp_path, callbacks=[EMA(0.9), Before()])
    assert any(modes.values())
    assert task.tokenizer.latent_statistics is not None


def test_checkpoints_written_afterwards_hold_them(tmp_path):
    class Save(LatentStatistics):
        def on_train_end(self, trainer, pl_module):
            super().on_train_end(trainer, pl_module)
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    task = tiny_task()
    fit(task, tiny_scenes(), tmp_path, callbacks=[Save()])
    assert Tokenizer.from_pretrained(tmp_path / "end.ckpt").latent_statistics == task.tokenizer.latent_statistics


def test_data_without_a_validation_split_ends_a_run_without_statistics(tmp_path):
    class TrainOnly(LightningDataModule):
        def train_dataloader(self):
            return DataLoader([{"image": torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)}] * 8, batch_size=2)

    task = tiny_task()
    fit(task, TrainOnly(), tmp_path, steps=1, callbacks=[LatentStatistics()])
    assert task.tokenizer.latent_statistics is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "train"}, "must be val or test"), ({"max_images": -1}, "max_images must be an integer >= 0 or null")],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentStatistics(**arguments)
