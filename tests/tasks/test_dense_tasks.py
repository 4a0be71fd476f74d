"""Segmentation and depth as tasks: windows, padding, mirror images, pictures, reports, two processes, and by YAML."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from parallel import ForkedFSDP2, needs_sharding
from tiny import ENCODER, tiny_scenes

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.encoders import SceneViT
from uniflow.features import BlankSource, EncoderSource, FeatureSource
from uniflow.heads import LabelHead, LinearDepth, LinearSegmentation, SegmentationHead
from uniflow.metrics.depth import DepthProtocol
from uniflow.plan import FakeTask, parts_of
from uniflow.tasks import DepthTask, SegmentationTask
from uniflow.tasks.segmentation import windows
from uniflow.training import FusedAdamW

THIRD_PARTY = Path(__file__).parents[1] / "third_party"
LINEAR = partial(LinearSegmentation, num_classes=13)
DEPTH = partial(LinearDepth, bins=16)
SOURCE = partial(EncoderSource, ENCODER)


class Pixels(FeatureSource):
    """The mean colour of each patch."""

    def __init__(self, patch_size: int = 4) -> None:
        super().__init__()
        self.spec = FeatureSpec(3, patch_size, 1, 0, 32)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        pooled = torch.nn.functional.avg_pool2d(images.float() / 255, self.spec.patch_size)
        tokens = pooled.flatten(2).transpose(1, 2)
        return EncoderOutput((tokens,), (tokens[:, :0],), tuple(pooled.shape[-2:]))


class Three(SegmentationHead):
    """The colours themselves as logits of three classes."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec, 3)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def values(self, features):
        return self.factor * features.feature_map()


class Column(LinearDepth):
    """Depth that grows from left to right, whatever the image is."""

    def values(self, features):
        rows, columns = features.grid
        return torch.linspace(1, 2, columns).expand(len(features.hidden_states[-1]), 1, rows, columns)


def built(task):
    task.configure_model()
    return task.eval()


def test_windows_cover_every_pixel_and_end_at_the_edge():
    for size, crop, stride in (((70, 100), 32, 20), ((32, 33), 32, 32), ((64, 64), 32, 32), ((20, 90), 32, 21)):
        seen = torch.zeros(size)
        for rows, columns in windows(*size, crop, stride):
            seen[rows, columns] += 1
            assert (rows.stop - rows.start, columns.stop - columns.start) == (min(crop, size[0]), min(crop, size[1]))
        assert seen.min() >= 1
    expected = [(0, 512), (171, 683)]
    assert [(w.start, w.stop) for _, w in windows(512, 683, 512, 341)] == expected  # an ADE20K image


@torch.no_grad()
def test_windows_are_averaged_where_they_overlap():
    image = torch.randint(0, 256, (1, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    source = Pixels()
    task = built(SegmentationTask(lambda: source, [Three], crop=32, stride=8))
    logits = task.predict(image)["segmentation"]
    assert source.sizes == [(32, 32)] * 3
    parts = [task.maps(image[..., left : left + 32])["segmentation"] for left in (0, 8, 16)]
    torch.testing.assert_close(logits[..., :8], parts[0][..., :8])
    torch.testing.assert_close(logits[..., 20], (parts[0][..., 20] + parts[1][..., 12] + parts[2][..., 4]) / 3)
    whole = built(SegmentationTask(Pixels, [Three], crop=None)).predict(image)["segmentation"]
    assert not torch.allclose(whole, logits)
    other = built(SegmentationTask(Pixels, [Three], crop=32, stride=16)).predict(image)["segmentation"]
    assert not torch.allclose(other, logits)


@torch.no_grad()
def test_any_image_size_is_padded_to_patches_and_cut_again():
    source = Pixels(8)
    task = built(SegmentationTask(lambda: source, [Three], crop=None))
    image = torch.randint(0, 256, (1, 3, 29, 38), dtype=torch.uint8)
    assert task.predict(image)["segmentation"].shape == (1, 3, 29, 38)
    assert source.sizes == [(32, 40)]
    loss = task.losses(task.features(image), {"image": image, "mask": torch.zeros(1, 29, 38)})["segmentation"]
    assert loss.isfinite()


@torch.no_grad()
def test_flip_averages_an_image_and_its_mirror_image():
    image = torch.zeros(1, 3, 16, 32, dtype=torch.uint8)
    plain, flipped = (
        built(DepthTask(Pixels, [Column], protocol=DepthProtocol(flip=flip))).predict(image)["depth"]
        for flip in (False, True)
    )
    assert plain[0, 0, 0, -1] > 1.9
    torch.testing.assert_close(flipped, torch.full_like(flipped, 1.5))


def test_other_heads_are_refused():
    task = SegmentationTask(Pixels, [partial(LabelHead, num_classes=3)])
    with pytest.raises(ValueError, match="must be subclasses of MapHead, LabelHead is not: use FeatureTask"):
        task.configure_model()
    with pytest.raises(ValueError, match="stride 65 leaves gaps between windows of crop 64; give 64 or less"):
        SegmentationTask(Pixels, [Three], crop=64, stride=65)


class Results(Callback):
    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        tables = pl_module.report_tables()
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps([values, tables, pl_module.report()]))


DDP = partial(DDPStrategy, start_method="fork", process_group_backend="gloo")


def evaluate(path, task, data, processes=1, strategy=DDP):
    seed_everything(0, verbose=False)
    strategy = strategy() if processes > 1 else "auto"
    quiet = {"logger": False, "enable_progress_bar": False, "default_root_dir": path.parent}
    trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, callbacks=[Results(path)], **quiet)
    trainer.test(task, data, verbose=False)
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(processes)]


SEGMENT, MEASURE = partial(SegmentationTask, SOURCE, [LINEAR]), partial(DepthTask, SOURCE, [DEPTH, DEPTH])


@pytest.mark.parametrize(
    ("make", "field", "strategy"),
    [
        (SEGMENT, "mask", DDP),
        (MEASURE, "depth", DDP),
        pytest.param(partial(SEGMENT, tune_source=True), "mask", ForkedFSDP2, marks=needs_sharding),
        pytest.param(MEASURE, "depth", ForkedFSDP2, marks=needs_sharding),
    ],
    ids=["segmentation", "depth", "segmentation, sharded", "depth, sharded"],
)
def test_two_processes_judge_as_one(tmp_path, make, field, strategy):
    data = partial(tiny_scenes, test_length=15, fields=[field])
    ((alone, tables, report),) = evaluate(tmp_path / "one", make(), data())
    (first, others, _), (second, _, _) = evaluate(tmp_path / "two", make(), data(batch_size=3), 2, strategy)
    assert first == pytest.approx(alone, abs=1e-5)
    assert second == pytest.approx({name: second[name] for name in second})
    assert json.dumps(others) == json.dumps(tables)  # nan too
    assert len(report["protocol/fingerprint"]) == 12
    if field == "depth":
        assert {"test/rmse", "test/depth_2_rmse"} <= alone.keys()


def test_what_the_numbers_depend_on_is_in_the_fingerprint(tmp_path):
    prints = set()
    for number, (crop, stride, size) in enumerate([(512, 341, 32), (512, 512, 32), (16, 16, 32), (512, 341, 40)]):
        task = SegmentationTask(BlankSource, [LINEAR], crop=crop, stride=stride)
        ((_, _, report),) = evaluate(tmp_path / str(number), task, tiny_scenes(fields=["mask"], size=size))
        prints.add(report["protocol/fingerprint"])
    assert len(prints) == 4


def test_pictures_show_truth_and_prediction_of_equal_size():
    torch.manual_seed(0)
    batch = next(iter(tiny_scenes(fields=["mask", "depth"]).test_dataloader()))
    for task, head in ((SegmentationTask, LINEAR), (DepthTask, DEPTH)):
        with torch.no_grad():
            rows = built(task(SOURCE, [head, head])).image_rows(batch, 3)
        titles = ["image", "truth", "prediction", f"{head.func.name}_2 truth", f"{head.func.name}_2 prediction"]
        assert list(rows) == titles
        assert {tuple(images.shape) for images in rows.values()} == {(3, 3, 32, 32)}
        assert all(0 <= images.min() <= images.max() <= 1 for images in rows.values())
        assert not torch.equal(rows["truth"], rows["prediction"])


RECIPE = """
model:
  class_path: {task}
  init_args:
    source: {{class_path: EncoderSource, init_args: {{encoder: {{class_path: {encoder}}}}}}}
    heads: [{{class_path: {head}, init_args: {arguments}}}]
    optimizer: {{class_path: FusedAdamW, init_args: {{lr: 1.0e-2}}}}
data:
  class_path: Scenes
  init_args: {{size: 32, train_length: 64, val_length: 8, test_length: 8, batch_size: 16, num_workers: 0,
               fields: [mask, depth]}}
trainer: {{accelerator: cpu, max_epochs: 8, log_every_n_steps: 1, enable_progress_bar: false}}
ema: null
"""


def test_a_third_partys_encoder_and_head_by_one_yaml(uniflow, tmp_path, monkeypatch):
    """Trained, monitored, tested, reported and drawn, without an edit of the package."""
    monkeypatch.syspath_prepend(THIRD_PARTY)
    names = {"encoder": "third_party_example.TokenMLP", "head": "third_party_example.ConvMaskHead"}
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(task="SegmentationTask", arguments="{num_classes: 13}", **names))
    assert uniflow("fit", "-c", str(recipe), "--run", str(run), "--trainer.max_epochs", "2").code == 0
    assert uniflow("test", "-c", str(run / "config.yaml"), "--ckpt_path", "best").code == 0
    results = json.loads((run / "test_results.json").read_text())
    assert 0 < results["test/miou"] < 1
    assert results["protocol/settings"]["windows"] == [512, 341]
    assert (run / "images" / "test.png").is_file()
    rows = list(csv.DictReader((run / "test_classes.csv").open()))
    assert [row["class"] for row in rows][:3] == ["background", "circle", "square"]
    known = [float(row["iou"]) for row in rows if row["iou"] != "nan"]
    assert sum(known) / len(known) == pytest.approx(results["test/miou"])


def test_a_third_partys_encoder_and_head_are_planned(monkeypatch):
    monkeypatch.syspath_prepend(THIRD_PARTY)
    from third_party_example import ConvMaskHead, TokenMLP

    task = SegmentationTask(partial(EncoderSource, TokenMLP), [partial(ConvMaskHead, num_classes=13)])
    parts = parts_of(FakeTask(task), (32, 32))
    assert [(part.name, part.trained > 0) for part in parts] == [("source", False), ("segmentation", True)]
    assert all(part.forward_gflop > 0 for part in parts)


def test_too_few_classes_and_a_missing_field_are_one_line(uniflow, tmp_path):
    names = {"task": "SegmentationTask", "encoder": "SceneViT", "head": "LinearSegmentation"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(arguments="{num_classes: 12}", **names))
    result = uniflow("fit", "-c", str(recipe), "--run", str(tmp_path / "a"))
    assert result.error == "the masks have 13 classes, LinearSegmentation.num_classes is 12"
    assert result.code == 2
    recipe.write_text(RECIPE.format(arguments="{num_classes: 13}", **names).replace("[mask, depth]", "[depth]"))
    result = uniflow("fit", "-c", str(recipe), "--run", str(tmp_path / "b"))
    assert "the batches have no 'mask'" in result.error
    assert result.code == 2


@pytest.mark.parametrize(
    ("task", "head", "metric"),
    [(SegmentationTask, LINEAR, "test/miou"), (DepthTask, partial(DEPTH, gradient_weight=0.0), "test/rmse")],
)
def test_training_lowers_the_loss(tmp_path, task, head, metric):
    torch.manual_seed(0)
    data = tiny_scenes(fields=["mask", "depth"])
    source = partial(EncoderSource, SceneViT)
    model = task(source, [head], optimizer=partial(FusedAdamW, lr=1e-2))
    trainer = Trainer(accelerator="cpu", max_steps=30, logger=False, enable_checkpointing=False, limit_val_batches=0,
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    before = trainer.test(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = trainer.test(model, data, verbose=False)[0]
    name = f"test/{head.func.name}"
    assert after[name] < 0.7 * before[name]
    assert (after[metric] > before[metric]) == (task.monitor[1] == "max")
    assert after[metric] != before[metric]
    assert not any(key.startswith("source") for key in model.state_dict())  # a frozen source is in no checkpoint
