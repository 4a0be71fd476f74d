"""The main task: what its arguments change, what a checkpoint holds, that a killed run resumes exactly."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import ENCODER, REGRESSION, fit, same, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import Bottleneck, MLPBottleneck
from uniflow.callbacks import EMA
from uniflow.distill import Adaptive, LastLayer, UniformWeighting
from uniflow.tasks.base import step_seed
from uniflow.training import FusedAdamW, LinearSchedule
from uniflow.training.optimizers import parameter_groups

STEPS = 4  # the first at which all arguments show


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return fit(tiny_task(), tiny_scenes(), tmp_path_factory.mktemp("baseline"), steps=STEPS)[1]


def test_the_same_run_twice_gives_the_same_losses(baseline, tmp_path):
    assert fit(tiny_task(), tiny_scenes(), tmp_path, steps=STEPS)[1] == baseline
    assert fit(tiny_task(), tiny_scenes(), tmp_path, steps=STEPS, seed=1)[1] != baseline


class Loud(MLPBottleneck):
    """A bottleneck with an auxiliary loss."""

    def forward(self, output):
        latents, _ = super().forward(output)
        return latents, {"norm": latents.square().mean()}


@pytest.mark.parametrize(
    "change",
    [
        {"weighting": UniformWeighting()},
        {"weighting": LastLayer()},
        {"weighting": Adaptive(beta=50.0)},
        {"distillation_weight": 0.0},
        {"distillation_weight": LinearSchedule(3.0, 1.0)},
        {"reconstruction_weight": 0.5},
        {"distill_prefix_tokens": True},
        {"encoder_lr_multiplier": 0.1},
        {"latent_feature_weight": 0.1},
        {"noise_tau": 0.3},
        {"decoder": REGRESSION},
        {"bottleneck": partial(Loud, channels=8)},
        {"encoder": partial(ENCODER, tune="frozen")},
        {"encoder": partial(ENCODER, tune=1)},
        {"optimizer": partial(FusedAdamW, lr=1e-3)},
        {"optimizer": torch.optim.SGD},
        {"lr_schedule": LinearSchedule(1.0, 0.5)},
    ],
    ids=lambda change: ",".join(f"{k}={getattr(v, '__name__', type(v).__name__)}" for k, v in change.items()),
)
def test_every_argument_changes_the_losses(baseline, tmp_path, change):
    losses = fit(tiny_task(**change), tiny_scenes(), tmp_path, steps=STEPS)[1]
    assert len(losses) == STEPS
    assert losses[-1] != baseline[-1]


def test_a_frozen_encoder_stays_as_it_was(tmp_path):
    task = tiny_task(encoder=partial(ENCODER, tune="frozen"))
    fit(task, tiny_scenes(), tmp_path)
    assert same(task.tokenizer.encoder.state_dict(), task.teacher.encoder.state_dict())
    assert not same(task.tokenizer.bottleneck.state_dict(), tiny_bottleneck(task))


def test_evaluation_sees_no_latent_noise(tmp_path):
    task = tiny_task(noise_tau=5.0)
    trainer, _ = fit(task, tiny_scenes(), tmp_path, steps=1)
    [noisy] = trainer.test(task, tiny_scenes(), verbose=False)
    task.noise_tau = 0.0
    assert trainer.test(task, tiny_scenes(), verbose=False) == [noisy]


def tiny_bottleneck(task):
    return MLPBottleneck(task.tokenizer.encoder.spec, channels=8).state_dict()


def test_distillation_holds_the_student_near_its_teacher(tmp_path):
    def drift(weight):
        task = tiny_task(distillation_weight=weight)
        trainer, _ = fit(task, tiny_scenes(), tmp_path, steps=12)
        return 1 - trainer.test(task, tiny_scenes(), verbose=False)[0]["test/cosine"]

    assert drift(10.0) < 0.6 * drift(0.0)


def test_the_teacher_is_in_no_checkpoint_and_not_needed_to_load(tmp_path, monkeypatch):
    trainer, _ = fit(tiny_task(), tiny_scenes(), tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert all(key.startswith("tokenizer.") for key in checkpoint["state_dict"])
    monkeypatch.setattr("uniflow.distill.FrozenTeacher.__init__", lambda *a: pytest.fail("built a teacher"))
    loaded = Tokenizer.from_pretrained(tmp_path / "a.ckpt")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.encode(images), trainer.lightning_module.tokenizer.eval().encode(images))


@pytest.mark.parametrize("stop_at", [5, 8])  # in the middle of an epoch of 8 batches, and at its end
def test_a_killed_run_resumes_with_the_same_losses(tmp_path, stop_at):
    def run(root, **kwargs):
        saver = ModelCheckpoint(root, every_n_train_steps=stop_at, save_top_k=-1, filename="{step}")
        callbacks = [EMA(0.9), saver]
        return fit(tiny_task(), tiny_scenes(), root, steps=12, callbacks=callbacks, enable_checkpointing=True, **kwargs)

    trainer, losses = run(tmp_path / "whole")
    # The resumed process has another random state, and what was learned comes from the checkpoint alone.
    torch.manual_seed(99)
    resumed, rest = run(tmp_path / "again", ckpt_path=tmp_path / "whole" / f"step={stop_at}.ckpt")
    assert rest == losses[stop_at:]
    assert same(resumed.lightning_module.state_dict(), trainer.lightning_module.state_dict())


def test_test_reports_reconstruction_and_drift(tmp_path):
    task = tiny_task(eval_steps=(1, 3))
    trainer, _ = fit(task, tiny_scenes(), tmp_path)
    [results] = trainer.test(task, tiny_scenes(), verbose=False)
    for key in ("psnr", "psnr_steps3", "ssim", "ssim_steps3", "cosine", "psnr_patch_mean"):
        assert f"test/{key}" in results
    layers = [v for k, v in results.items() if k.startswith("test_layers/cosine_")]
    assert len(layers) == 3
    assert results["test/cosine"] == pytest.approx(sum(layers) / 3, abs=1e-6)
    assert trainer.test(task, tiny_scenes(), verbose=False)[0] == results  # evaluation draws the same noise
    assert trainer.test(task, tiny_scenes(batch_size=3), verbose=False)[0]["test/cosine"] == pytest.approx(
        results["test/cosine"], abs=1e-6
    )


def test_predict_gives_latents(tmp_path):
    task = tiny_task()
    fit(task, tiny_scenes(), tmp_path)
    batches = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", default_root_dir=tmp_path).predict(
        task, tiny_scenes()
    )
    assert batches[0]["latents"].shape == (8, 8, 4, 4)
    assert batches[0]["label"].shape == (8,)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_steps"):
        tiny_task(eval_steps=())
    with pytest.raises(ValueError, match="max_steps or max_epochs"):
        fit(tiny_task(), tiny_scenes(), tmp_path, steps=-1, max_epochs=-1)


def test_parameter_groups_exempt_vectors_from_decay_and_follow_the_multiplier():
    task = tiny_task(encoder_lr_multiplier=0.1)
    task.configure_model()
    groups = parameter_groups(task, task.lr_multiplier)
    assert len(groups) == 4
    assert sum(len(g["params"]) for g in groups) == len(list(task.parameters()))
    for group in groups:
        if group.get("weight_decay") != 0.0:
            assert all(p.squeeze().ndim >= 2 for p in group["params"])
    optimizer = FusedAdamW(groups, lr=1.0)
    assert optimizer.defaults["fused"]


def test_configure_model_may_run_twice():
    task = tiny_task()
    task.configure_model()
    before = task.tokenizer
    task.configure_model()
    assert task.tokenizer is before
    assert isinstance(before.bottleneck, Bottleneck)


def test_step_seeds_depend_on_run_seed_and_position(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    seeds = {step_seed(batch, rank) for batch in range(50) for rank in range(4)}
    assert len(seeds) == 200
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert step_seed(0, 0) not in seeds


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_trains_with_losses_in_float32(tmp_path, precision):
    task = tiny_task()
    _, losses = fit(task, tiny_scenes(), tmp_path, precision=precision, gradient_clip_val=1.0)
    assert all(0 < loss < 10 for loss in losses)
    assert task.trainer.callback_metrics["train/loss"].dtype == torch.float32
