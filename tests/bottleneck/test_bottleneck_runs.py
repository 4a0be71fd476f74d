"""Bottlenecks in runs: component files, exact resuming, sizes that do not fit."""

from functools import partial

import pytest
import torch
import yaml
from cli_fixtures import REPOSITORY
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import ENCODER, fit, same, tiny_scenes, tiny_task

from uniflow.bottleneck import Bottleneck, KLBottleneck, MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.callbacks import EMA, CodebookUsage
from uniflow.core.part import build_part

FILES = sorted((REPOSITORY / "configs/bottlenecks").glob("*.yaml"))
# 128 latents a step: on average each entry is used twice, so that some are replaced at every step.
SMALL = partial(VQBottleneck, codebook_size=64, codebook_dim=4, dead_code_threshold=1.0, decay=0.9)


@pytest.fixture(autouse=True)
def _few_images_for_calibration(monkeypatch):
    monkeypatch.setattr("uniflow.tasks.start.CALIBRATION_IMAGES", 8)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_component_trains_validates_and_is_logged(tmp_path, file):
    config = yaml.safe_load(file.read_text())
    config["class_path"] = f"uniflow.bottleneck.{config['class_path']}"
    encoder = partial(ENCODER, depth=4)  # some name layer 2 and the last
    task = tiny_task(encoder=encoder, bottleneck=lambda spec: build_part(config, Bottleneck, spec))
    settings = {"limit_val_batches": 1, "val_check_interval": 2}
    trainer, losses = fit(task, tiny_scenes(), tmp_path, steps=2, callbacks=[CodebookUsage()], **settings)
    assert len(losses) == 2
    discrete = task.tokenizer.codebook_size is not None
    assert discrete == any(word in file.stem for word in ("fsq", "vq"))
    assert ("val/codebook_perplexity" in trainer.callback_metrics) == discrete


def test_every_run_reports_the_codebook(uniflow, project):
    options = ["-c", "recipe.yaml", "--model.bottleneck", "FSQBottleneck", "--model.bottleneck.levels", "[4, 4, 3]"]
    result = uniflow("fit", *options, "--run", "runs/tiny")
    assert result.code == 0, result.err
    result = uniflow("test", "-c", "runs/tiny/config.yaml", "--ckpt_path", "last")
    assert result.code == 0, result.err
    assert "test/codebook_perplexity" in (project / "runs/tiny/test_results.json").read_text()


def test_images_that_a_merge_does_not_fit_get_one_line(uniflow, project):
    options = ["--model.bottleneck", "MLPBottleneck", "--model.bottleneck.merge", "2", "--data.size", "40"]
    result = uniflow("fit", "-c", "recipe.yaml", *options, "--run", "runs/odd")
    assert "image sides must be multiples of 16 pixels" in result.error


@pytest.mark.parametrize(
    "bottleneck",
    [
        SMALL,
        partial(SMALL, learnable=True),
        partial(MultiVQBottleneck, num_codebooks=2, codebook_size=64, codebook_dim=4, dead_code_threshold=1.0),
        partial(KLBottleneck, channels=8),
    ],
    ids=["vq", "vq_learnable", "multi_vq", "kl"],
)
def test_a_killed_run_resumes_with_the_same_losses_and_codebooks(tmp_path, bottleneck):
    def run(root, **kwargs):
        saver = ModelCheckpoint(root, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        task = tiny_task(bottleneck=bottleneck)
        return fit(task, tiny_scenes(), root, steps=6, callbacks=[EMA(0.9), saver], enable_checkpointing=True, **kwargs)

    trainer, losses = run(tmp_path / "whole")
    torch.manual_seed(99)
    resumed, rest = run(tmp_path / "again", ckpt_path=tmp_path / "whole" / "step=3.ckpt")
    assert rest == losses[3:]
    assert same(resumed.lightning_module.state_dict(), trainer.lightning_module.state_dict())


def test_entries_are_replaced_in_the_runs_above(tmp_path):
    def entries(**kwargs):
        task = tiny_task(bottleneck=partial(SMALL, **kwargs))
        fit(task, tiny_scenes(), tmp_path, steps=4)
        return task.tokenizer.bottleneck.codebook.quantizer.codebook

    moved = (entries() - entries(dead_code_threshold=0.0)).abs().sum(dim=1) > 0
    assert moved.sum() > 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_trains_codebooks(tmp_path, precision):
    task = tiny_task(bottleneck=SMALL)
    _, losses = fit(task, tiny_scenes(), tmp_path, precision=precision)
    assert all(0 < loss < 20 for loss in losses)
    indices = task.tokenizer.eval().indices(torch.rand(2, 3, 32, 32))
    assert indices.unique().numel() > 3


def test_losses_of_the_bottleneck_are_trained_on(tmp_path):
    def run(weight):
        return fit(tiny_task(bottleneck=partial(KLBottleneck, channels=8, weight=weight)), tiny_scenes(), tmp_path)[1]

    low, high = run(1e-3), run(1e-2)
    assert run(1e-3) == low
    assert high[0] > low[0]
    assert high[-1] != low[-1]


def test_a_checkpoint_of_the_plain_projection_needs_no_new_settings():
    task = tiny_task()
    task.configure_model()
    config = task.tokenizer.config()
    del config["bottleneck"]["init_args"]["merge"]  # as written before there was merging
    again = type(task.tokenizer).from_config(config)
    again.load_state_dict(task.tokenizer.state_dict())
    assert isinstance(again.bottleneck, MLPBottleneck)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval().encode(images), task.tokenizer.eval().encode(images))
