"""Where a loss that is no number is looked at, and that nothing of its step is ever saved."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import fit, tiny_scenes, tiny_task

from uniflow.callbacks import Stability
from uniflow.callbacks.stability import NonFiniteLossError
from uniflow.decoders import RegressionDecoder

SIZES = {"width": 32, "num_heads": 2, "global_depth": 1, "head_depth": 1}


class Breaking(RegressionDecoder):
    """Its third loss is not a number."""

    calls = 0

    def loss(self, latents, images):
        type(self).calls += 1
        [(name, value)] = super().loss(latents, images).items()
        return {name: value * (float("nan") if type(self).calls == 3 else 1)}


class Recorder(Callback):
    """The image of each step."""

    def __init__(self):
        self.images = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images.append(batch["image"].clone())


def broken_fit(folder: Path, *callbacks, **settings):
    """Run into the third loss; returns the task, the error and the images of the steps that were begun."""
    Breaking.calls = 0
    task, recorder = tiny_task(decoder=partial(Breaking, **SIZES)), Recorder()
    settings = {"enable_checkpointing": True, "steps": 6} | settings
    with pytest.raises(NonFiniteLossError) as error:
        fit(task, tiny_scenes(), folder, callbacks=[recorder, *callbacks], **settings)
    return task, str(error.value), recorder.images


def finite(checkpoint: Path) -> bool:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("at_once", [True, False])
def test_no_weights_of_that_step_are_saved_and_its_batch_is_kept(tmp_path, at_once, weights_only):
    every_step = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, save_weights_only=weights_only, save_on_exception=True
    )
    _, error, images = broken_fit(tmp_path, Stability(at_once=at_once), every_step)
    assert "nan at step 2" in error
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert {"step=1.ckpt", "step=2.ckpt"} <= {path.name for path in saved}
    assert all(finite(path) for path in saved)
    kept = torch.load(tmp_path / "nonfinite_batch_rank0.pt", weights_only=True)
    assert kept["global_step"] == 2
    assert torch.equal(kept["batch"]["image"], images[2])


def test_a_later_check_stops_at_the_next_loss_an_early_one_before_the_step(tmp_path):
    task, _, images = broken_fit(tmp_path, Stability(at_once=False))
    assert len(images) == 4
    assert not all(torch.isfinite(p).all() for p in task.parameters())
    with pytest.raises(NonFiniteLossError):  # the weights are broken by now
        task.state_dict()
    task, _, images = broken_fit(tmp_path, Stability())
    assert len(images) == 3
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())


@pytest.mark.parametrize("settings", [{"steps": 3}, {"limit_val_batches": 1, "val_check_interval": 3}])
def test_the_last_loss_before_validation_and_before_the_end_is_looked_at(tmp_path, settings):
    settings = {"enable_checkpointing": False, **settings}
    _, error, images = broken_fit(tmp_path, Stability(at_once=False), **settings)
    assert "nan at step 2" in error
    assert len(images) == 3


def test_losses_between_checks_pass_until_weights_are_saved(tmp_path):
    Breaking.calls = 0
    task = tiny_task(decoder=partial(Breaking, **SIZES))
    recorder = Recorder()
    with pytest.raises(NonFiniteLossError, match=r"weights.* are not finite after step 3"):  # at the end at the latest
        fit(task, tiny_scenes(), tmp_path, callbacks=[recorder, Stability(check_every=8)], steps=3)
    assert len(recorder.images) == 3
    with pytest.raises(ValueError, match="check_every"):
        Stability(check_every=0)


def test_after_a_good_run_the_module_is_as_before(tmp_path):
    task = tiny_task()
    fit(task, tiny_scenes(), tmp_path, callbacks=[Stability(at_once=False)], steps=2)
    assert not task._state_dict_pre_hooks


class BreakingGradients(RegressionDecoder):
    """Its third loss is finite, and its gradients are not."""

    calls = 0

    def loss(self, latents, images):
        type(self).calls += 1
        [(name, value)] = super().loss(latents, images).items()
        if type(self).calls == 3:
            value = value + (value - value.detach()).abs().sqrt()  # 0, with an infinite slope
        return {name: value}


@pytest.mark.parametrize("at_once", [True, False])
def test_gradients_that_are_not_finite_stop_the_run_and_spoil_no_checkpoint(tmp_path, at_once):
    BreakingGradients.calls = 0
    task = tiny_task(decoder=partial(BreakingGradients, **SIZES))
    every_step = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_exception=True)
    with pytest.raises(NonFiniteLossError, match="gradient norm is nan at step 2"):
        fit(task, tiny_scenes(), tmp_path, callbacks=[Stability(at_once=at_once), every_step], steps=6,
            enable_checkpointing=True)  # fmt: skip
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert saved
    assert all(finite(path) for path in saved)
    assert (tmp_path / "nonfinite_batch_rank0.pt").is_file()


class Spoiling(Callback):
    """Makes one weight infinite after the second step, whatever loss and gradients were."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            with torch.no_grad():
                pl_module.tokenizer.bottleneck.fc1.bias[0] = float("inf")


@pytest.mark.parametrize("steps", [2, 4])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, steps):
    task = tiny_task()
    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(NonFiniteLossError):
        fit(task, tiny_scenes(), tmp_path, callbacks=[Spoiling(), Stability(check_every=9), last], steps=steps,
            enable_checkpointing=True)  # fmt: skip
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    assert finite(tmp_path / "last.ckpt")
