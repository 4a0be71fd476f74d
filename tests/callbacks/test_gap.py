"""The gap to the teacher: its numbers against direct computation, whatever the batches, and the alarm."""

import json
import logging
import re
import warnings
from functools import partial

import pytest
import torch
import yaml
from lightning import LightningDataModule
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny import REGRESSION, fit, tiny_scenes, tiny_task
from torch.utils.data import DataLoader

from uniflow.callbacks import TeacherGap
from uniflow.callbacks.gap import _pooled, _pooled_layers
from uniflow.cli import main
from uniflow.encoders.base import EncoderOutput
from uniflow.evaluation.chosen import ChosenImages
from uniflow.metrics import (
    ReconstructionProtocol,
    image_digests,
    knn_accuracy,
    leave_one_out_knn_accuracy,
    linear_cka,
    linear_probe,
)

NAMES = ("teacher", "student", "latent")


def task_with_a_gap(noise=0.1):
    """A student whose weights are the teacher's and noise."""
    torch.manual_seed(0)
    task = tiny_task(decoder=REGRESSION, protocol=ReconstructionProtocol(images=["psnr"], sets=[]))
    task.configure_model()
    with torch.no_grad():
        for parameter in task.tokenizer.encoder.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return task


class Colours(LightningDataModule):
    """Pictures in one of three colours, as anybody's data module would serve them: with whatever labels.

    `label` makes the batch's labels from the numbers of the colours; None leaves them out.
    """

    def __init__(self, label=lambda numbers: numbers, length=24):
        super().__init__()
        self.label, self.length = label, length

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, self.length, 8):
            numbers = torch.arange(start, start + 8) % 3
            images = 0.2 * torch.rand(8, 3, 32, 32, generator=generator) + 0.8 * torch.eye(3)[numbers][..., None, None]
            yield {"image": images} | ({} if self.label is None else {"label": self.label(numbers)})

    def val_dataloader(self):
        return [DataLoader(list(self.batches(0)), batch_size=None)]  # a list of one loader is allowed

    def test_dataloader(self):
        return DataLoader(list(self.batches(1)), batch_size=None)


class Results(Callback):
    """Writes each rank's metrics to a file."""

    def __init__(self, path):
        self.path = path

    def write(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(values))

    on_validation_end = on_test_end = write


def run(stage, task, data, path, gap, **kwargs):
    """All ranks' metrics."""
    path.parent.mkdir(exist_ok=True)
    trainer = Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=path.parent,
        callbacks=[gap, Results(path)], **({"accelerator": "cpu"} | kwargs),
    )  # fmt: skip
    getattr(trainer, stage)(task, data, verbose=False)
    return [json.loads(path.with_suffix(f".{rank}").read_text()) for rank in range(trainer.world_size)]


@torch.no_grad()
def features(task, batches):
    """Pooled features of all layers, latents, labels and digests, one picture at a time."""
    task.eval()
    found = {name: [] for name in (*NAMES, "label", "digest")}
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            student, teacher = task.tokenizer.encoder(image[None]), task.teacher(image[None])
            for name, output in (("student", student), ("teacher", teacher)):
                found[name].append(torch.stack([h[0].mean(dim=0) for h in output.hidden_states]))
            found["latent"].append(task.tokenizer.bottleneck(student)[0][0].mean(dim=(1, 2))[None])
            found["label"].append(label)
            found["digest"] += image_digests(image[None])
    digests = found.pop("digest")
    return {name: torch.stack(parts) for name, parts in found.items()} | {"digest": digests}


def first(found, count):
    """Of the pictures with the smallest digests."""
    order = sorted(range(len(found["digest"])), key=found["digest"].__getitem__)[:count]
    return {name: found[name][order] for name in (*NAMES, "label")}


def cka_of(found, stage):
    layers = [linear_cka(found["student"][:, layer], found["teacher"][:, layer]) for layer in range(3)]
    return {f"{stage}_layers/cka_{i + 1}": value for i, value in enumerate(layers)} | {f"{stage}/cka": sum(layers) / 3}


def test_validation_is_of_the_chosen_images(tmp_path):
    task, data = task_with_a_gap(), tiny_scenes(val_length=60)
    gap = TeacherGap(online_images=45, alarm_below_cosine=None, alarm_knn_points=None)
    [metrics] = run("validate", task, data, tmp_path / "val", gap)
    found = first(features(task, data.val_dataloader()), 45)
    expected = cka_of(found, "val")
    for name in NAMES:
        expected[f"val/knn_{name}"] = leave_one_out_knn_accuracy(found[name][:, -1], found["label"])
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.3 < expected["val/cka"] < 0.99
    assert not {"val/gap_alarm", "test/cka"} & metrics.keys()
    [more] = run("validate", task, data, tmp_path / "more", TeacherGap(online_images=60))
    assert more["val/cka"] != pytest.approx(metrics["val/cka"], abs=1e-6)
    [off] = run("validate", task, data, tmp_path / "off", TeacherGap(online_images=0))
    assert not [name for name in off if "cka" in name or "knn" in name]


def test_test_is_fitted_on_validation_and_scored_on_test(tmp_path):
    task, data, passes = task_with_a_gap(), tiny_scenes(val_length=48, test_length=40), []
    task.tokenizer.encoder.register_forward_hook(lambda *_: passes.append(1))
    gap = TeacherGap(online_images=20, max_images=30)
    [metrics] = run("test", task, data, tmp_path / "test", gap)
    assert len(passes) == 40 / 8 + 48 / 8  # the test split is not passed again
    val, test = (features(task, loader) for loader in (data.val_dataloader(), data.test_dataloader()))
    expected = cka_of(first(test, 20), "test")
    for kind, accuracy_of in (("knn", knn_accuracy), ("probe", linear_probe)):
        train, scored = first(val, 30), first(test, 30)
        for name in NAMES:
            x, x_test = train[name][:, -1], scored[name][:, -1]
            expected[f"test/{kind}_{name}"] = accuracy_of(x, train["label"], x_test, scored["label"])
        points = expected[f"test/{kind}_teacher"] - expected[f"test/{kind}_student"]
        expected[f"test/gap_{kind}"] = 100 * points
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert not gap._layers._rows
    assert not gap._to_classify._rows
    [off] = run("test", task, data, tmp_path / "off", TeacherGap(max_images=0))
    assert "test/cka" in off
    assert not [name for name in off if "knn" in name or "probe" in name]


@pytest.mark.parametrize(("stage", "count"), [("validate", 8), ("test", 12)])
def test_batches_and_processes_change_nothing(tmp_path, stage, count):
    task = task_with_a_gap()

    def numbers(name, batch_size, **kwargs):
        data = tiny_scenes(val_length=29, test_length=21, batch_size=batch_size)
        gap = TeacherGap(online_images=12, max_images=16, alarm_knn_points=None)
        found = run(stage, task, data, tmp_path / name, gap, **kwargs)
        kinds = ("cka", "knn", "probe", "gap")
        return [{key: value for key, value in rank.items() if any(kind in key for kind in kinds)} for rank in found]

    [one] = numbers("one", 8)
    assert len(one) == count
    assert one.keys() >= ({"val/gap_alarm"} if stage == "validate" else {"test/probe_latent", "test/gap_knn"})
    [small] = numbers("small", 3)
    assert small == pytest.approx(one, abs=1e-6)
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    for rank in numbers("two", 4, strategy=ddp, devices=2):
        assert rank == pytest.approx(one, abs=1e-6)


def test_validation_in_fit_needs_no_second_pass_and_the_sanity_check_none_at_all(tmp_path):
    def passes(*callbacks):
        task, count = task_with_a_gap(0.0), []
        task.tokenizer.encoder.register_forward_hook(lambda *_: count.append(1))
        settings = {"limit_val_batches": 1.0, "val_check_interval": 2, "num_sanity_val_steps": 1}
        trainer, losses = fit(task, tiny_scenes(), tmp_path, callbacks=callbacks, **settings)
        return len(count), losses, trainer.callback_metrics

    count, losses, metrics = passes(TeacherGap())
    plain, same_losses, _ = passes()
    assert (count, losses) == (plain, same_losses)
    assert 0.9 < metrics["val/cka"] <= 1
    assert metrics["val/gap_alarm"] == 0


@pytest.mark.parametrize(
    ("stage", "label"),
    [
        ("test", None),
        ("validate", None),
        ("validate", lambda numbers: torch.stack([numbers, numbers], dim=1)),
        ("validate", lambda numbers: numbers.float()),
        ("validate", lambda numbers: numbers > 0),
        ("validate", lambda numbers: numbers - 9),
        ("validate", list),
    ],
    ids=["test_none", "none", "multi_label", "float", "bool", "below_zero", "list"],
)
def test_without_classes_there_is_cka_alone(tmp_path, caplog, stage, label):
    with caplog.at_level(logging.INFO):
        [metrics] = run(stage, task_with_a_gap(), Colours(label), tmp_path / "run", TeacherGap())
    assert 0 < metrics["val/cka" if stage == "validate" else "test/cka"] <= 1
    assert not [name for name in metrics if "knn" in name or "probe" in name]
    assert caplog.text.count("no integer class") == 1


def test_images_without_a_class_are_left_out_of_classification(tmp_path):
    def some(numbers):
        return torch.where(torch.arange(8) < 5, numbers, -1).to(torch.int32)

    task = task_with_a_gap()
    [partly] = run("test", task, Colours(some), tmp_path / "some", TeacherGap())
    [whole] = run("test", task, Colours(), tmp_path / "all", TeacherGap())
    assert partly["test/cka"] == whole["test/cka"]
    assert partly["test/probe_teacher"] == whole["test/probe_teacher"] == 1


def test_loaders_without_a_data_module_are_compared_but_not_classified(tmp_path):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[TeacherGap()],
    )  # fmt: skip
    [metrics] = trainer.test(task_with_a_gap(), Colours().test_dataloader(), verbose=False)
    assert "test/cka" in metrics
    assert "test/knn_student" not in metrics


def blind_task():
    """A student that sees no colour: its features are the same for all pictures."""
    task = task_with_a_gap()
    with torch.no_grad():
        for parameter in task.tokenizer.encoder.parameters():
            parameter.zero_()
    return task


ALARM = "step 0: the student has moved away from its teacher"


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({}, [r"cosine [-.\d]+ \(limit 0.8\)", r"k-NN accuracy 0.0 % against 100.0 %, 100.0 points \(limit 10\)"]),
        ({"alarm_knn_points": None}, ["cosine .*limit 0.8.; raise model.distillation_weight"]),
        ({"alarm_below_cosine": None}, ["teacher: k-NN .*limit 10.; raise model.distillation_weight"]),
        ({"online_images": 0}, ["cosine .*limit 0.8.; raise model.distillation_weight"]),
    ],
    ids=["both", "cosine", "knn", "no_features"],
)
def test_the_alarm_says_what_is_wrong_and_what_to_do(tmp_path, limits, parts):
    with pytest.warns(UserWarning, match=ALARM) as caught:
        [metrics] = run("validate", blind_task(), Colours(), tmp_path / "val", TeacherGap(**limits))
    [alarm] = [str(w.message) for w in caught if ALARM in str(w.message)]
    assert "\n" not in alarm
    for part in parts:
        assert re.search(part, alarm), alarm
    assert metrics["val/gap_alarm"] == 1


@pytest.mark.parametrize(
    ("make", "limits"),
    [
        (partial(task_with_a_gap, 0.0), {"alarm_below_cosine": 0.99, "alarm_knn_points": 0.0}),
        (blind_task, {"alarm_below_cosine": -1.0, "alarm_knn_points": 100.0}),
        (blind_task, {"alarm_below_cosine": None, "alarm_knn_points": None}),
    ],
    ids=["no_gap", "within_limits", "off"],
)
def test_no_alarm(tmp_path, make, limits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        [metrics] = run("validate", make(), Colours(), tmp_path / "val", TeacherGap(**limits))
    assert not [w for w in caught if "teacher" in str(w.message)]
    assert metrics.get("val/gap_alarm") == (None if limits["alarm_below_cosine"] is None else 0)


def test_the_chosen_are_few_and_depend_on_nothing_but_their_keys():
    def batch(numbers):
        states = tuple(torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1).expand(-1, 4, 2) + i for i in (0, 1))
        output = EncoderOutput(states, states, (2, 2))
        return [(f"{number:03d}", number) for number in numbers], output, output, torch.ones(len(numbers), 3, 1, 1)

    found = []
    for order in (range(60), range(59, -1, -1), [*range(30, 60), *range(30), 3, 3]):
        numbers, chosen = list(order), ChosenImages(10)
        for start in range(0, len(numbers), 7):
            keys, *outputs = batch(numbers[start : start + 7])
            chosen.update(keys, _pooled_layers(*outputs))
            assert len(chosen._rows) <= 10
        found.append(chosen.gather())
        assert found[-1]["label"].tolist() == list(range(10))
        assert found[-1]["student"][:, :, 0].T.tolist() == [list(range(10)), list(range(1, 11))]
        storage = sum(row["student"].untyped_storage().nbytes() for row in chosen._rows.values())
        assert storage == 10 * 2 * 2 * 4  # copies, no views of whole batches
    assert found[0].keys() == {"teacher", "student", "latent", "label"}
    last = ChosenImages(10)
    keys, *outputs = batch([1, 2])
    last.update(keys, _pooled(*outputs))
    assert last.gather()["teacher"].tolist() == [[2, 2], [3, 3]]
    assert ChosenImages(10).gather().keys() == {"label"}


def test_half_precision_is_pooled_in_single():
    state = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    state[:, 0] = 100.0
    output = EncoderOutput((state,), (state,), (64, 64))
    chosen = ChosenImages(1)
    chosen.update([("a", 0)], _pooled(output, output, state.view(1, 1, 64, 64)))
    expected = torch.tensor(1 + 99 / 4096)
    for name in NAMES:
        torch.testing.assert_close(chosen.gather()[name].squeeze(), expected)


@pytest.mark.parametrize(
    "bad",
    [{"online_images": -1}, {"max_images": -1}, {"alarm_below_cosine": 1.5}, {"alarm_knn_points": -1.0}],
    ids=lambda bad: next(iter(bad)),
)
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=rf"TeacherGap\.{next(iter(bad))} must .* got {next(iter(bad.values()))}"):
        TeacherGap(**bad)


def test_the_command_line_sets_it_and_reads_configs_of_earlier_runs(tmp_path, capsys):
    (tmp_path / "earlier.yaml").write_text(
        "probe: {class_path: uniflow.callbacks.LinearProbe, init_args: {max_images: 77}}"
    )
    command = ["fit", "-c", "configs/quickstart.yaml", "-c", str(tmp_path / "earlier.yaml"), "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--probe.alarm_knn_points", "null"])
    settings = yaml.safe_load(capsys.readouterr().out)["probe"]["init_args"]
    assert settings == {
        "online_images": 512, "max_images": 77, "alarm_below_cosine": 0.8, "alarm_knn_points": None
    }  # fmt: skip
