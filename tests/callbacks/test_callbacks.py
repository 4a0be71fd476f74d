"""Callbacks: what they write, what they change."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import REGRESSION, fit, same, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.callbacks import (
    EMA,
    ImageGrid,
    LatentWriter,
    Monitor,
    ResultsFile,
    Stability,
    TeacherGap,
    TokenizerExport,
)
from uniflow.callbacks.stability import NonFiniteLossError
from uniflow.decoders import RegressionDecoder
from uniflow.pictures.drawing import pca_basis, pca_image
from uniflow.training import FusedAdamW


def test_ema_follows_its_formula_and_is_what_evaluation_and_export_use(tmp_path):
    class Watch(EMA):
        """Recomputes the average from the weights after every step."""

        expected: dict | None = None

        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            weights = {k: v.detach().clone() for k, v in pl_module.named_parameters()}
            self.expected = self.expected or {k: v.clone() for k, v in self.start.items()}
            n = trainer.global_step
            d = min(self.decay, (1 + n) / (10 + n))
            self.expected = {k: d * self.expected[k] + (1 - d) * weights[k] for k in weights}
            self.raw = weights

        def on_fit_start(self, trainer, pl_module):
            super().on_fit_start(trainer, pl_module)
            self.start = {k: v.detach().clone() for k, v in pl_module.named_parameters()}

    ema, task = Watch(0.8), tiny_task(optimizer=partial(FusedAdamW, lr=1e-2))
    fit(task, tiny_scenes(), tmp_path, callbacks=[ema, TokenizerExport()], steps=5)
    for name, value in ema.expected.items():
        torch.testing.assert_close(ema.average[name], value, atol=1e-6, rtol=1e-5)
        assert torch.equal(task.get_parameter(name), ema.average[name])
    assert not same(ema.raw, ema.average)
    exported = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert same(exported.state_dict(), task.tokenizer.state_dict())


def test_a_checkpoint_holds_raw_weights_and_average_and_loading_prefers_the_average(tmp_path):
    ema = EMA(0.8)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="mid", save_top_k=-1)
    task = tiny_task(optimizer=partial(FusedAdamW, lr=1e-2))
    fit(task, tiny_scenes(), tmp_path, callbacks=[ema, saver], steps=6, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert checkpoint["ema"].keys() == {n for n, p in task.named_parameters() if p.requires_grad}
    assert not same(checkpoint["ema"], {k: checkpoint["state_dict"][k] for k in checkpoint["ema"]})
    loaded = Tokenizer.from_pretrained(tmp_path / "mid.ckpt")
    assert torch.equal(loaded.bottleneck.fc1.weight, checkpoint["ema"]["tokenizer.bottleneck.fc1.weight"])


def test_ema_evaluates_with_the_average_and_gives_the_weights_back(tmp_path):
    ema, seen = EMA(0.8), {}

    class Look(EMA):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            seen["validation"] = pl_module.tokenizer.bottleneck.fc1.weight.clone()

        def on_train_batch_start(self, trainer, pl_module, *args):
            seen["training"] = pl_module.tokenizer.bottleneck.fc1.weight.clone()

    task = tiny_task(optimizer=partial(FusedAdamW, lr=1e-2))
    settings = {"limit_val_batches": 1, "val_check_interval": 4}
    fit(task, tiny_scenes(), tmp_path, callbacks=[ema, Look(0.0)], steps=5, **settings)
    assert not torch.equal(seen["validation"], seen["training"])
    off = EMA(0.0)
    fit(tiny_task(), tiny_scenes(), tmp_path, callbacks=[off])
    assert off.average == {}
    with pytest.raises(ValueError, match="decay"):
        EMA(1.0)


class Exploding(RegressionDecoder):
    """Its third loss is not a number."""

    calls = 0

    def loss(self, latents, images):
        type(self).calls += 1
        [(name, value)] = super().loss(latents, images).items()
        return {name: value * (float("nan") if type(self).calls == 3 else 1)}


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(tmp_path):
    Exploding.calls = 0
    task = tiny_task(decoder=partial(Exploding, width=32, num_heads=2, global_depth=1, head_depth=1))
    with pytest.raises(NonFiniteLossError, match=r"nan at step 2.*nonfinite_batch_rank0\.pt"):
        fit(task, tiny_scenes(), tmp_path, callbacks=[Stability()])
    saved = torch.load(tmp_path / "nonfinite_batch_rank0.pt", weights_only=True)
    assert saved["batch"]["image"].shape == (8, 3, 32, 32)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_the_log_holds_losses_layers_norms_rates_throughput_and_pictures(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    settings = {"limit_val_batches": 1, "val_check_interval": 4, "log_every_n_steps": 2, "logger": logger}
    fit(tiny_task(eval_steps=(1, 2)), tiny_scenes(), tmp_path, callbacks=[Monitor(), ImageGrid(4)], **settings)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"train/loss", "train/flow", "train/distillation", "layers/distance_1", "layers/weight_3", "val/psnr"}
    expected |= {"gradient_norm/encoder", "gradient_norm/total", "learning_rate/x1", "images_per_second"}
    expected |= {"val/psnr_steps2", "val_layers/cosine_3"}
    assert expected <= tags, expected - tags
    weights = [events.Scalars(f"layers/weight_{i}")[-1].value for i in (1, 2, 3)]
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert events.Tags()["images"] == ["val"]
    assert (tmp_path / "images" / "val_0000004.png").stat().st_size > 1000


def test_test_writes_results_probes_and_rows_of_pictures(tmp_path):
    task = tiny_task(decoder=REGRESSION)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[TeacherGap(), ResultsFile(), ImageGrid(3)],
    )
    trainer.test(task, tiny_scenes(val_length=48, test_length=24), verbose=False)
    results = json.loads((tmp_path / "test_results.json").read_text())
    assert results["test/probe_teacher"] == results["test/probe_student"]  # untrained: the student is its teacher
    assert results["test/cosine"] == pytest.approx(1, abs=1e-5)
    assert 0 <= results["test/probe_latent"] <= 1
    rows = load_file(tmp_path / "images" / "test.safetensors")
    assert rows["original"].shape == (3, 3, 32, 32)
    assert torch.equal(rows["teacher"], rows["student"])
    assert "reconstruction, 1 step" in rows


def test_predicted_latents_go_to_files(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[LatentWriter()],
    )
    trainer.predict(tiny_task(), tiny_scenes(), return_predictions=False)
    tensors = load_file(tmp_path / "latents" / "rank000-000000.safetensors")
    assert tensors["latents"].shape == (8, 8, 4, 4)
    assert tensors["label"].shape == (8,)


def test_principal_colours_separate_what_differs():
    features = torch.zeros(1, 8, 4, 4)
    features[:, 0, :, :2] = 5.0
    features[:, 1, :2] = 2.0
    features += 1e-3 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    image = pca_image(features, pca_basis(features), (8, 8))
    assert image.shape == (1, 3, 8, 8)
    assert image.min() >= 0
    assert image.max() <= 1
    assert (image[0, 0, :, :4].mean() - image[0, 0, :, 4:].mean()).abs() > 0.5
