"""Latent statistics of two processes are those of one."""

import json
from functools import partial

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny import REGRESSION, fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.callbacks import EMA, LatentStatistics
from uniflow.tools.stats import SETTINGS, stats
from uniflow.training import FusedAdamW


class Write(Callback):
    """Each rank's statistics as a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        statistics = json.dumps(pl_module.tokenizer.latent_statistics)
        (self.folder / f"{trainer.global_rank}.json").write_text(statistics)


def run(folder, processes, max_images=None, batch=8):
    folder.mkdir()
    kwargs = {}
    if processes > 1:
        kwargs = {"strategy": DDPStrategy(start_method="fork", process_group_backend="gloo"), "devices": processes}
    data = tiny_scenes(train_length=16, val_length=11, batch_size=batch)
    task = tiny_task(decoder=REGRESSION, optimizer=partial(FusedAdamW, lr=0.0))  # the same weights in both
    callbacks = [EMA(0.9), LatentStatistics(max_images=max_images), Write(folder)]
    fit(task, data, folder, steps=1, callbacks=callbacks, **kwargs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("max_images", [None, 7])
def test_two_processes_measure_what_one_measures(tmp_path, max_images):
    [alone] = run(tmp_path / "one", 1, max_images)
    first, second = run(tmp_path / "two", 2, max_images, batch=4)
    assert first == second
    assert first["count"] == alone["count"] == (max_images or 11) * 16
    for name in ("mean", "std"):
        assert first[name] == pytest.approx(alone[name], abs=1e-6)


def test_two_processes_of_the_command_write_what_one_writes(tmp_path):
    tokenizer = tiny_tokenizer()
    found = []
    for processes, batch in ((1, 8), (2, 3)):
        folder = tmp_path / str(processes)
        tokenizer.save_pretrained(folder)
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
        trainer = Trainer(
            accelerator="cpu", devices=processes, strategy=strategy, **SETTINGS, enable_progress_bar=False
        )
        data = tiny_scenes(val_length=11, batch_size=batch)
        stats(trainer, data, tmp_path, tokenizer=str(folder))
        found.append(Tokenizer.from_pretrained(folder).latent_statistics)
    alone, together = found
    assert together["count"] == alone["count"] == 11 * 16
    for name in ("mean", "std"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6)


def tiny_tokenizer():
    task = tiny_task(decoder=REGRESSION)
    task.configure_model()
    return task.tokenizer
