"""Classification by sweeps, attentive probes, k-NN, logistic regression and class names, on every source and data."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from tiny import ENCODER, fit, tiny_scenes
from torch.utils.data import DataLoader

from uniflow.data import ImageFolder
from uniflow.features import BlankSource, EncoderSource, LatentSource, TokenizerSource
from uniflow.heads import AttentiveProbeHead, LabelHead, LinearSweepHead, MaskHead
from uniflow.metrics import knn_accuracy, linear_probe
from uniflow.tasks import ClassificationTask
from uniflow.training import CosineSchedule

SWEEP = partial(LinearSweepHead, num_classes=12, learning_rates=[0.01, 0.1], blocks=[1, 2])
SOURCE = partial(EncoderSource, ENCODER, layers=2)
SGD = partial(torch.optim.SGD, lr=1.0, momentum=0.9)


def make(source=SOURCE, heads=(SWEEP,), **changed):
    settings = {"optimizer": SGD, "lr_schedule": CosineSchedule(1.0, 0.0), "neighbours": [5], **changed}
    return ClassificationTask(source, list(heads), **settings)


def run(task, data, root, **kwargs):
    """Fit and test; the test's numbers."""
    seed_everything(0, verbose=False)
    settings = {"num_sanity_val_steps": 0, "limit_val_batches": 1.0, "val_check_interval": 2} | kwargs
    trainer, _ = fit(task, data, root, steps=4, **settings)
    validated = dict(trainer.callback_metrics)
    trainer.test(task, data, verbose=False)
    return {name: float(value) for name, value in (validated | trainer.callback_metrics).items()}


@pytest.mark.parametrize(
    "source",
    [
        SOURCE,
        partial(TokenizerSource, "embedded", layers=4),
        partial(LatentSource, "embedded"),
        partial(BlankSource, patch_size=16),
    ],
    ids=["encoder", "student", "latents", "blank"],
)
def test_any_source(source, tmp_path):
    attentive = partial(AttentiveProbeHead, num_classes=12, learning_rates=[0.01], num_heads=2)
    found = run(make(source, [SWEEP, attentive, partial(LabelHead, num_classes=12)]), tiny_scenes(), tmp_path)
    names = "accuracy top5 attentive_accuracy attentive_top5 label_accuracy knn_5 knn_5_top5 logistic logistic_top5"
    assert {f"test/{name}" for name in [*names.split(), "linear", "attentive", "label"]} == {
        name for name in found if name.startswith("test/")
    }
    assert all(0 <= found[f"test/{name}"] <= 1 for name in names.split())


def test_validation_picks_and_the_test_is_of_that_one(tmp_path):
    task = make()
    found = run(task, tiny_scenes(val_length=40), tmp_path)
    report = task.report()
    best = max(row["val_accuracy"] for row in report["linear/candidates"])
    assert len(report["linear/candidates"]) == 8
    assert report["linear/picked"]["val_accuracy"] == best == pytest.approx(found["val/accuracy"], abs=1e-6)
    picked = int(task.heads["linear"].picked)
    data = tiny_scenes()
    right = total = 0
    for batch in data.test_dataloader():
        with torch.no_grad():
            logits = task.heads["linear"](task.features(batch["image"]))[picked]
        right, total = right + int((logits.argmax(dim=1) == batch["label"]).sum()), total + len(logits)
    assert found["test/accuracy"] == pytest.approx(right / total)


def test_the_test_split_changes_neither_pick_nor_weights(tmp_path):
    states = []
    for number, seed_of_test in enumerate((5, 17)):
        task = make()
        run(task, tiny_scenes(test_length=seed_of_test), tmp_path / str(number))
        states.append(task.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_test_before_any_validation_is_refused(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    with pytest.raises(ValueError, match="no candidate has been picked"):
        trainer.test(make(neighbours=[], logistic_l2=None), tiny_scenes(), verbose=False)


def test_learning_rates_are_scaled_by_the_images_of_a_step(tmp_path):
    rates = []
    for batch, accumulate in ((8, 1), (16, 1), (8, 4)):
        task, data = make(), tiny_scenes(batch_size=batch)
        trainer, _ = fit(task, data, tmp_path, steps=1, accumulate_grad_batches=accumulate)
        groups = trainer.optimizers[0].param_groups
        rates.append(sorted({round(group["initial_lr"] * 256, 6) for group in groups}))
    assert rates == [[0.08, 0.8], [0.16, 1.6], [0.32, 3.2]]


def test_what_is_fitted_equals_the_metrics_on_training_images_without_augmentation(tmp_path):
    task, data = make(neighbours=[3, 20]), tiny_scenes()
    found = run(task, data, tmp_path)
    splits = {}
    for split, loader in (("train", data.plain_train_dataloader()), ("test", data.test_dataloader())):
        parts = [(task.vectors(task.features(b["image"])), b["label"]) for b in loader]
        splits[split] = [torch.cat(column) for column in zip(*parts, strict=True)]
    arguments = (*splits["train"], *splits["test"])
    assert len(splits["train"][0]) == 64
    for k in (3, 20):
        assert found[f"test/knn_{k}"] == pytest.approx(knn_accuracy(*arguments, k=k))
    assert found["test/logistic"] == pytest.approx(linear_probe(*arguments))


def fitted(root, **kwargs):
    data = tiny_scenes(test_length=120, train_length=60, size=16)
    found = run(make(neighbours=[40], **kwargs), data, root)
    return {name: value for name, value in found.items() if "knn" in name or "logistic" in name}


@pytest.fixture(scope="module")
def fitted_by_default(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("default"))


@pytest.mark.parametrize("changed", [{"pool": "mean"}, {"fit_images": 12}, {"temperature": 50.0}, {"logistic_l2": 9.0}])
def test_every_setting_changes_what_is_fitted(tmp_path, fitted_by_default, changed):
    after = fitted(tmp_path, **changed)
    assert after.keys() == fitted_by_default.keys()
    assert after != fitted_by_default


def test_fitted_classifiers_can_be_left_out(tmp_path):
    found = run(make(neighbours=[], logistic_l2=None), tiny_scenes(), tmp_path)
    assert not [name for name in found if "knn" in name or "logistic" in name]


def test_a_source_can_be_tuned(tmp_path):
    task = make(tune_source=True)
    task.configure_model()
    before = {name: value.clone() for name, value in task.source.state_dict().items()}
    run(task, tiny_scenes(), tmp_path)
    assert any(not torch.equal(value, before[name]) for name, value in task.source.state_dict().items())


def test_a_head_that_classifies_is_needed():
    task = make(heads=[partial(MaskHead, num_classes=13)])
    with pytest.raises(ValueError, match=r"ClassificationTask\.heads: none of them classifies images"):
        task.configure_model()


class Plain(LightningDataModule):
    """Somebody's own data module, which knows nothing of this project."""

    batch_size = 8

    def _loader(self):
        samples = [{"image": torch.full((3, 32, 32), 9 * i, dtype=torch.uint8), "label": i % 12} for i in range(24)]
        return DataLoader(samples, batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = _loader


def test_data_without_a_plain_training_loader(tmp_path):
    found = run(make(neighbours=[], logistic_l2=None), Plain(), tmp_path)
    assert "test/accuracy" in found
    with pytest.raises(ValueError, match=r"which Plain does not give .* set neighbours to \[\]"):
        run(make(), Plain(), tmp_path)
    unknown = Plain()
    unknown.batch_size = None
    with pytest.raises(ValueError, match="need a data module with `batch_size`"):
        run(make(), unknown, tmp_path)


@pytest.fixture
def labelled(tmp_path):
    """train/CLASS and test/CLASS without val; each class has a colour of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 5)):
        for number, name in enumerate(("red", "green_ish", "blue")):
            for image in range(count):
                pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
                pixels[..., number] += 120
                path = tmp_path / "labelled" / split / name / f"{split}{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return tmp_path / "labelled"


def folder(root, **changed):
    return ImageFolder(str(root), size=32, batch_size=8, num_workers=0, val_fraction=0.2, **changed)


def test_a_labelled_folder_without_val(labelled, tmp_path):
    """Validation images are cut out of train, and the three splits share no file."""
    data = folder(labelled)
    data.setup()
    names = {split: {f"{d.folder.name}/{n.decode()}" for n in d.names} for split, d in data.datasets.items()}
    assert all(name.startswith("train/") for name in names["val"] | names["train"])
    assert len(names["val"] | names["train"]) == 90
    assert 8 < len(names["val"]) < 28
    assert not names["val"] & names["train"]
    assert all(name.startswith("test/") for name in names["test"])
    head = partial(LinearSweepHead, num_classes=3, learning_rates=[0.1, 1.0])
    found = run(make(heads=[head]), data, tmp_path / "run")
    assert found["test/knn_5"] == 1
    assert found["test/logistic"] == 1
    with pytest.raises(ValueError, match=r"the data has 3 classes, LinearSweepHead\.num_classes is 2"):
        run(make(heads=[partial(LinearSweepHead, num_classes=2)]), folder(labelled), tmp_path / "run")


def test_pictures_show_class_and_answer(labelled, tmp_path):
    head = partial(LinearSweepHead, num_classes=3, learning_rates=[1.0])
    task, data = make(heads=[head]), folder(labelled)
    batch = next(iter(data.test_dataloader()))
    trainer, _ = fit(task, data, tmp_path, steps=1)
    task.trainer = trainer
    with torch.no_grad():
        before = task.image_rows(batch, 2)
        assert before.keys() == {"class"}
        task.heads["linear"].picked.fill_(0)
        rows = task.image_rows(batch, 2)
    assert rows.keys() == {"class", "answer"}
    assert rows["class"].shape == rows["answer"].shape == (2, 3, 96 + 14, 96)
    assert 0 <= rows["class"].min() < rows["class"].max() <= 1
    assert not torch.equal(rows["class"], rows["answer"])


class Results(Callback):
    """Writes what each process has found: numbers, and what validation has picked."""

    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for row, candidate in enumerate(pl_module.report()["linear/candidates"]):
            values[f"candidate {row}"] = candidate["val_accuracy"]
        values["rate"] = pl_module.report()["linear/picked"]["learning_rate"]
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(values))

    on_validation_end = on_test_end


def evaluate(path, processes, split):
    seed_everything(0, verbose=False)
    task = make()
    task.configure_model()
    task.heads["linear"].picked.fill_(5)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        callbacks=[Results(path)],
        default_root_dir=path.parent,
    )
    data = tiny_scenes(val_length=31, test_length=21, train_length=30)
    getattr(trainer, split)(task, data, verbose=False)
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("split", ["validate", "test"])
def test_two_processes_evaluate_as_one(tmp_path, split):
    [alone] = evaluate(tmp_path / "one", 1, split)
    first, second = evaluate(tmp_path / "two", 2, split)
    assert first == pytest.approx(alone, abs=1e-5)
    assert {k: v for k, v in second.items() if "candidate" in k or k == "rate"} == pytest.approx(
        {k: v for k, v in alone.items() if "candidate" in k or k == "rate"}, abs=1e-5
    )
    assert len(alone) > 10
