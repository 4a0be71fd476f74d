"""Pretraining: every head teaches the encoder, and what is exported is what was trained."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from uniflow.data import Scenes
from uniflow.encoders import SceneViT
from uniflow.heads import ColorHead, DepthHead, Head, LabelHead, MaskHead
from uniflow.tasks.pretraining import Pretraining
from uniflow.training.optimizers import FusedAdamW

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "image_size": 32}
HEADS: dict[str, Any] = {
    "label": partial(LabelHead, num_classes=12),
    "mask": partial(MaskHead, num_classes=13, cells=2),
    "depth": DepthHead,
    "color": partial(ColorHead, cells=4),
}


def make_task(**arguments: Any) -> Pretraining:
    return Pretraining(partial(SceneViT, weights=None, **TINY), **({"heads": list(HEADS.values())} | arguments))


def make_data(**arguments: Any) -> Scenes:
    sizes = {"train_length": 64, "val_length": 32, "test_length": 32, "batch_size": 16}
    return Scenes(32, num_workers=0, fields=("mask", "depth"), **(sizes | arguments))


def make_trainer(path: Path, **arguments: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", default_root_dir=path, **quiet, enable_model_summary=False, **arguments)


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return next(iter(make_data().train_dataloader()))


def built(**arguments: Any) -> Pretraining:
    torch.manual_seed(0)
    task = make_task(**arguments)
    task.configure_model()
    return task


def test_training_makes_every_loss_fall(tmp_path: Path) -> None:
    lightning.seed_everything(0)
    task = make_task(optimizer=partial(FusedAdamW, lr=3e-3))
    data = make_data(train_length=16, fresh_epochs=False)
    task.configure_model()
    batch = next(iter(data.train_dataloader()))
    before = {name: loss.item() for name, loss in task.losses(task.encoder(batch["image"]), batch).items()}
    make_trainer(tmp_path, max_steps=60, limit_val_batches=0).fit(task, DataLoader([batch] * 60, batch_size=None))
    after = {name: loss.item() for name, loss in task.losses(task.encoder(batch["image"]), batch).items()}
    assert set(before) == set(HEADS)
    for name in HEADS:
        assert after[name] < 0.8 * before[name], name


@pytest.mark.parametrize("name", HEADS)
def test_every_head_teaches_the_encoder(name: str, batch: dict[str, Any]) -> None:
    """Each loss alone sends a gradient to the first block, and its weight scales it."""
    gradients = {}
    for weight in (0.0, 1.0, 2.0):
        task = built(heads=[partial(HEADS[name], weight=weight)])
        losses = task.losses(task.encoder(batch["image"]), batch)
        assert set(losses) == {name}
        losses[name].backward()
        gradient = task.encoder.get_parameter("model.blocks.0.attn.qkv.weight").grad
        assert gradient is not None
        gradients[weight] = gradient
    assert gradients[1.0].norm() > 0
    assert gradients[0.0].norm() == 0
    torch.testing.assert_close(gradients[2.0], 2 * gradients[1.0])


def test_heads_read_patch_tokens_only(batch: dict[str, Any]) -> None:
    task = built()
    output = task.encoder(batch["image"])
    losses = task.losses(output, batch)
    output.prefix_tokens = tuple(torch.randn_like(tokens) for tokens in output.prefix_tokens)
    again = task.losses(output, batch)
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_dense_predictions_lie_on_the_grid_of_cells(batch: dict[str, Any]) -> None:
    task = built()
    shapes = {name: tuple(head(task.encoder(batch["image"])).shape) for name, head in task.heads.items()}
    assert shapes == {"label": (16, 12), "mask": (16, 13, 8, 8), "depth": (16, 1, 4, 4), "color": (16, 3, 16, 16)}


def _target(head: Head, batch: dict[str, Any]) -> Tensor:
    """The prediction that a head's metric should call perfect."""
    if isinstance(head, MaskHead):
        return head._shares(batch)
    if isinstance(head, DepthHead):
        return head.pool(batch["depth"].unsqueeze(1)).log()
    if isinstance(head, ColorHead):
        return head.pool(batch["image"].float() / 255)
    return torch.nn.functional.one_hot(batch["label"], 12).float()


@pytest.mark.parametrize("name", HEADS)
def test_metrics_of_a_perfect_prediction(name: str, batch: dict[str, Any]) -> None:
    head = HEADS[name](SceneViT(weights=None, **TINY).spec)
    metrics = head.metrics()
    head.update_metrics(metrics, _target(head, batch), batch)
    for key, value in metrics.compute().items():
        assert float(value) == pytest.approx(1.0 if "accuracy" in key else 0.0, abs=1e-5), key


def test_mask_target_is_the_share_of_each_class(batch: dict[str, Any]) -> None:
    head = HEADS["mask"](SceneViT(weights=None, **TINY).spec)
    shares = head._shares(batch)
    cell = batch["mask"][3, 4:8, 12:16]
    expected = torch.stack([(cell == k).float().mean() for k in range(13)])
    torch.testing.assert_close(shares[3, :, 1, 3], expected)


def test_background_weight_scales_the_background_alone(batch: dict[str, Any]) -> None:
    prediction = torch.randn(16, 13, 8, 8)
    losses = []
    for background_weight in (0.0, 0.5, 1.0):
        head = HEADS["mask"](SceneViT(weights=None, **TINY).spec, background_weight=background_weight)
        losses.append(head.loss(prediction, batch))
    background = (-prediction.log_softmax(dim=1)[:, 0] * head._shares(batch)[:, 0]).mean()
    torch.testing.assert_close(losses[2] - losses[0], background)
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * background)


def test_fit_exports_what_was_trained_and_test_probes_it(tmp_path: Path, batch: dict[str, Any]) -> None:
    lightning.seed_everything(0)
    task, data = make_task(), make_data()
    trainer = make_trainer(tmp_path, max_steps=2, precision="bf16-mixed")
    trainer.fit(task, data)
    loaded = SceneViT(weights=tmp_path / "encoder.safetensors", **TINY)
    trained = task.encoder(batch["image"]).hidden_states[-1]
    torch.testing.assert_close(loaded(batch["image"]).hidden_states[-1], trained, rtol=0.01, atol=0.01)
    (results,) = trainer.test(task, datamodule=data, verbose=False)
    assert 0 <= results["test/probe"] <= 1
    assert {"test/accuracy", "test/mask_accuracy", "test/depth_abs_rel", "test/color_rmse"} <= set(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": []}, "at least one head"),
        ({"heads": [partial(DepthHead, cells=3)]}, "must divide the patch size 8, got 3"),
        ({"heads": [partial(DepthHead, weight=-1.0)]}, "must be a finite number >= 0"),
        ({"heads": [partial(HEADS["mask"], background_weight=-1.0)]}, "background_weight must be a finite number >= 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**arguments)
