"""Pixel losses in the main task: what they change, who gets which gradient, what a checkpoint holds."""

import json
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lpips_weights import write_lpips
from tiny import REGRESSION, fit, same, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.callbacks import EMA, TokenizerExport
from uniflow.decoders import ConvDecoder, ViTDecoder
from uniflow.losses import Adversarial, Perceptual
from uniflow.training.optimizers import parameter_groups

VIT = partial(ViTDecoder, width=32, num_heads=2, depth=1)
CONV = partial(ConvDecoder, width=32, min_width=8, depth=1, groups=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_lpips(tmp_path_factory.mktemp("lpips") / "alexnet.safetensors", "alexnet")


def perceptual(weights, weight=1.0):
    return Perceptual(weights, "alexnet", weight=weight)


def adversarial(weight=0.1):
    torch.manual_seed(5)
    return Adversarial(weight, width=8, depth=2)


class Gradients(Callback):
    """Keeps the gradients and the logged terms of the first step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.terms = {k.removeprefix("train/"): v.item() for k, v in trainer.callback_metrics.items()}


def first_step(tmp_path, *losses, **kwargs):
    """Loss, terms and gradients of one step with these pixel losses."""
    watch = Gradients()
    _, [loss] = fit(tiny_task(pixel_losses=list(losses), **kwargs), tiny_scenes(), tmp_path, steps=1, callbacks=[watch])
    return loss, watch.terms, watch.gradients


@pytest.mark.parametrize("decoder", [None, REGRESSION, VIT, CONV], ids=["flow", "regression", "vit", "conv"])
def test_every_decoder_takes_every_loss(tmp_path, weights, decoder):
    choice = {"decoder": decoder} if decoder else {}
    without, plain, _ = first_step(tmp_path, **choice)
    loss, terms, _ = first_step(tmp_path, perceptual(weights), adversarial(), **choice)
    assert terms.keys() - plain.keys() == {"perceptual", "adversarial", "discriminator"}
    assert all(terms[name] == value for name, value in plain.items() if name != "loss")  # decoder, distillation
    added = terms["perceptual"] + terms["adversarial"] + terms["discriminator"]
    assert loss == pytest.approx(without + added, abs=1e-5)
    assert terms["perceptual"] > 0.01


def test_reconstruction_weight_leaves_pixel_losses_alone(tmp_path, weights):
    _, terms, _ = first_step(tmp_path, perceptual(weights), adversarial())
    _, less, _ = first_step(tmp_path, perceptual(weights), adversarial(), reconstruction_weight=0.5)
    assert less["flow"] == pytest.approx(0.5 * terms["flow"])
    assert all(less[name] == terms[name] for name in ("perceptual", "adversarial", "discriminator"))
    _, strong, _ = first_step(tmp_path, perceptual(weights, 3.0), adversarial(0.4))
    assert strong["perceptual"] == pytest.approx(3 * terms["perceptual"])
    assert strong["adversarial"] == pytest.approx(4 * terms["adversarial"])
    assert strong["discriminator"] == terms["discriminator"]


def test_each_side_gets_its_own_gradient(tmp_path, weights):
    _, _, plain = first_step(tmp_path)
    _, _, silent = first_step(tmp_path, adversarial(0.0))
    _, _, loud = first_step(tmp_path, adversarial(5.0))
    _, _, seen = first_step(tmp_path, perceptual(weights))
    ours = {name: gradient for name, gradient in silent.items() if name.startswith("pixel_losses.")}
    assert sum(gradient.abs().sum() for gradient in ours.values()) > 0
    for name, gradient in ours.items():  # the generator's weight does not reach the discriminator
        assert torch.equal(gradient, loud[name])
    for name, gradient in plain.items():  # the discriminator's loss does not reach the tokenizer
        torch.testing.assert_close(silent[name], gradient, rtol=1e-4, atol=1e-7)
    for part in ("tokenizer.decoder.head.final_proj.weight", "tokenizer.decoder.head.final_proj.bias"):
        assert not torch.allclose(loud[part], plain[part], rtol=1e-3)
        assert not torch.allclose(seen[part], plain[part], rtol=1e-3)


def test_two_losses_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pixel_losses: Adversarial gives a second loss named 'adversarial'"):
        first_step(tmp_path, adversarial(), adversarial())


def test_the_discriminator_is_grouped_and_decayed_like_everything_else(weights):
    task = tiny_task(pixel_losses=[perceptual(weights), adversarial()])
    task.configure_model()
    decayed = {
        id(p) for g in parameter_groups(task, task.lr_multiplier) if g.get("weight_decay") != 0.0 for p in g["params"]
    }
    found = {name: id(p) in decayed for name, p in task.pixel_losses.named_parameters()}
    assert found == {name: p.ndim == 4 for name, p in task.pixel_losses.named_parameters()}
    assert any(found.values())
    assert not all(found.values())


def test_a_checkpoint_has_the_discriminator_but_no_backbone_and_the_tokenizer_neither(tmp_path, weights):
    task = tiny_task(pixel_losses=[perceptual(weights), adversarial()])
    trainer, _ = fit(task, tiny_scenes(), tmp_path, callbacks=[EMA(0.9), TokenizerExport()])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    ours = {name for name in checkpoint["state_dict"] if not name.startswith("tokenizer.")}
    assert ours == {f"pixel_losses.1.{name}" for name in task.pixel_losses[1].state_dict()}
    assert ours <= checkpoint["ema"].keys()
    images = torch.rand(1, 3, 32, 32)
    for path in (tmp_path / "a.ckpt", tmp_path / "tokenizer"):
        loaded = Tokenizer.from_pretrained(path)
        assert loaded.state_dict().keys() == task.tokenizer.state_dict().keys()
        assert torch.equal(loaded.encode(images), task.tokenizer.eval().encode(images))


def test_a_killed_run_resumes_with_the_same_losses(tmp_path, weights):
    def run(root, **kwargs):
        saver = ModelCheckpoint(root, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        task = tiny_task(pixel_losses=[perceptual(weights), adversarial()], decoder=VIT)
        callbacks = [EMA(0.9), saver]
        return fit(task, tiny_scenes(), root, steps=6, callbacks=callbacks, enable_checkpointing=True, **kwargs)

    trainer, losses = run(tmp_path / "whole")
    torch.manual_seed(99)
    resumed, rest = run(tmp_path / "again", ckpt_path=tmp_path / "whole" / "step=3.ckpt")
    assert rest == losses[3:]
    assert same(resumed.lightning_module.state_dict(), trainer.lightning_module.state_dict())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(tmp_path, weights, precision):
    task = tiny_task(pixel_losses=[perceptual(weights), adversarial()])
    trainer, losses = fit(task, tiny_scenes(), tmp_path, precision=precision, gradient_clip_val=1.0)
    assert all(0 < loss < 10 for loss in losses)
    for name in ("loss", "perceptual", "adversarial", "discriminator"):
        assert trainer.callback_metrics[f"train/{name}"].dtype == torch.float32


class Record(Callback):
    def __init__(self, path):
        self.path, self.losses = path, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_fit_end(self, trainer, pl_module):
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(self.losses))


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, weights):
    def run(name, processes, **kwargs):
        task = tiny_task(pixel_losses=[perceptual(weights), adversarial()], decoder=REGRESSION)
        data = tiny_scenes(batch_size=8 // processes)
        fit(task, data, tmp_path, steps=3, callbacks=[Record(tmp_path / name)], devices=processes, **kwargs)
        return [json.loads((tmp_path / name).with_suffix(f".{rank}").read_text()) for rank in range(processes)]

    [alone] = run("one", 1)
    # DDP raises in the second step if a parameter has been left without a gradient.
    first, second = run("two", 2, strategy=DDPStrategy(start_method="fork", process_group_backend="gloo"))
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(alone, abs=1e-4)


def test_from_the_command_line(project, uniflow, resolve, weights):
    losses = [
        {"class_path": "uniflow.losses.Perceptual", "init_args": {"weights": weights, "backbone": "alexnet"}},
        {"class_path": "Adversarial", "init_args": {"width": 8, "depth": 2, "weight": 0.25}},
    ]
    (project / "losses.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"pixel_losses": losses}}}))
    result = uniflow("fit", "-c", "recipe.yaml", "-c", "losses.yaml", "--run", "runs/a")
    assert result.code == 0, result.err
    saved = yaml.safe_load((project / "runs/a/config.yaml").read_text())["model"]["init_args"]["pixel_losses"]
    assert [entry["class_path"].rpartition(".")[2] for entry in saved] == ["Perceptual", "Adversarial"]
    assert saved[1]["init_args"] == {"width": 8, "depth": 2, "weight": 0.25}
    result = uniflow("test", "-c", "runs/a/config.yaml", "--ckpt_path", "last")
    assert result.code == 0, result.err
    parsed = resolve("-c", "recipe.yaml", "--model.pixel_losses+", "Adversarial")
    [added] = parsed["model"]["init_args"]["pixel_losses"]
    assert added["class_path"] == "uniflow.losses.Adversarial"
    (project / "losses.yaml").write_text((project / "losses.yaml").read_text().replace(weights, "none.safetensors"))
    result = uniflow("fit", "-c", "recipe.yaml", "-c", "losses.yaml", "--run", "runs/c")
    assert "no such file: 'none.safetensors'; docs/decoders.md has a script" in result.error
