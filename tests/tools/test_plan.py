"""What a plan says against what training takes, and that every setting changes it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from cli_fixtures import REPOSITORY, fitted, project, uniflow  # noqa: F401
from lightning.pytorch import Trainer
from tiny import ENCODER, FLOW, tiny_task
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from uniflow.callbacks import EMA
from uniflow.encoders import DINOv2
from uniflow.layers.blocks import Checkpointing
from uniflow.losses import Adversarial
from uniflow.plan import FakeTask, Memory, memory_of, parts_of, training_hours
from uniflow.tokenizer.summary import model_summary

SHAPE = (16, 3, 64, 64)


def peak_of_a_fit(measure: Any, task: Any, precision: str, root: Path) -> int:
    images = torch.randint(0, 256, SHAPE, dtype=torch.uint8)
    before = measure.live_bytes() - images.nbytes

    def fit() -> None:  # the second step has the optimizer's states from its beginning
        batches = torch.utils.data.DataLoader([{"image": image} for image in images] * 2, batch_size=SHAPE[0])
        Trainer(
            max_steps=2, accelerator="cpu", precision=precision, callbacks=[EMA(0.9)], default_root_dir=root,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(task(), batches)  # fmt: skip

    return measure.peak_live_bytes(fit) - before


@pytest.mark.parametrize(
    ("precision", "checkpointing"),
    [
        ("32-true", False),
        pytest.param("bf16-mixed", False, marks=pytest.mark.slow),
        ("32-true", "selective"),
        ("32-true", True),
    ],
)
def test_peak_is_that_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, checkpointing: Checkpointing
) -> None:
    """Within 15 % of what the allocator gave out at most."""
    task = partial(tiny_task, activation_checkpointing=checkpointing)
    monkeypatch.syspath_prepend(str(REPOSITORY))
    real = peak_of_a_fit(importlib.import_module("benchmarks.measure"), task, precision, tmp_path)
    mixed = precision == "bf16-mixed"  # devices differ in autocast alone
    row = memory(mixed, checkpointing, **({"device": "cpu"} if mixed else {}))["ddp"]
    assert row.total == pytest.approx(real, rel=0.15)
    # Weights, states and average alone would not do.
    assert row.parameters + row.optimizer + row.average + row.teacher < 0.5 * real


@cache
def tiny_fake() -> FakeTask:
    """Has taken a step: the first one makes a tensor of 16 kB that stays."""
    fake = FakeTask(tiny_task())
    memory_of(fake, SHAPE, mixed=False, checkpointing=False)
    return fake


@cache
def rows_of(batch: int, options: tuple[tuple[str, Any], ...]) -> dict[str, Memory]:
    return {row.strategy: row for row in memory_of(tiny_fake(), (batch, *SHAPE[1:]), **dict(options))}


def memory(
    mixed: bool = False, checkpointing: Checkpointing = False, batch: int = 16, **options: Any
) -> dict[str, Memory]:
    """By strategy, of a tiny task."""
    return rows_of(batch, tuple(sorted({"mixed": mixed, "checkpointing": checkpointing, **options}.items())))


def test_memory_follows_the_settings() -> None:
    plain = memory()["ddp"]
    assert plain.gradients == plain.parameters == plain.average
    assert plain.optimizer == pytest.approx(2 * plain.parameters, rel=0.01)
    assert plain.buckets == plain.gathered == 0
    assert plain.total < plain.parameters + plain.gradients + plain.optimizer + plain.average + plain.teacher + (
        plain.activations
    )
    some, full = (memory(checkpointing=mode)["ddp"].activations for mode in ("selective", True))
    assert full < 0.6 * plain.activations
    assert full < 0.9 * some < 0.8 * plain.activations
    assert memory(batch=32)["ddp"].activations == pytest.approx(2 * plain.activations, rel=0.05)
    on_cpu, on_cuda = (memory(mixed=True, device=device)["ddp"].activations for device in ("cpu", "cuda"))
    assert on_cuda < 0.9 * plain.activations
    assert on_cuda > on_cpu  # norms in float32
    assert memory(average=False)["ddp"].total == plain.total - plain.average
    assert memory(accumulate=True)["ddp"].total > plain.total


def test_sharding() -> None:
    rows = memory(mixed=True, devices=4)
    ddp, fsdp, low = rows["ddp"], rows["fsdp2"], rows["fsdp2 gathering bfloat16"]
    assert ddp.teacher < memory(devices=4)["ddp"].teacher < 4 * fsdp.teacher + 4  # rounded where it is not sharded
    for name in ("parameters", "gradients", "optimizer", "average"):
        assert 0 <= 4 * getattr(fsdp, name) - getattr(ddp, name) < 4
    assert ddp.buckets == ddp.gradients
    assert fsdp.total < ddp.total
    assert fsdp.gathered > low.gathered > 0
    assert fsdp.activations > low.activations  # which keeps no weights that autocast has cast


def test_any_optimizer_and_pixel_loss() -> None:
    def of_one_block(**parts: Any) -> Memory:
        fake = FakeTask(tiny_task(encoder=partial(ENCODER, depth=1), decoder=partial(FLOW, flow_depth=1), **parts))
        return next(row for row in memory_of(fake, SHAPE, mixed=False, checkpointing=False) if row.strategy == "ddp")

    plain = of_one_block()
    assert of_one_block(optimizer=partial(torch.optim.SGD, lr=0.1)).optimizer == 0
    muon = of_one_block(optimizer=partial(timm.optim.Muon, lr=0.1, ns_steps=1))  # reads numbers from its states
    assert 0 < muon.optimizer < plain.optimizer
    judged = of_one_block(pixel_losses=[Adversarial(width=8)])
    assert judged.parameters > plain.parameters
    assert judged.activations > plain.activations


def test_a_frozen_encoder_costs_one_forward_pass() -> None:
    frozen = FakeTask(tiny_task(encoder=partial(ENCODER, tune="frozen")))
    encoder, _, decoder, teacher = parts_of(frozen, (64, 64))
    assert (encoder.trained, teacher.trained) == (0, 0)
    assert encoder.frozen == teacher.frozen > 0
    assert encoder.training_gflop == encoder.forward_gflop > 0
    assert decoder.training_gflop == pytest.approx(3 * decoder.forward_gflop)
    assert teacher.training_gflop == 0
    last = parts_of(FakeTask(tiny_task(encoder=partial(ENCODER, tune=1))), (64, 64))
    assert encoder.forward_gflop < last[0].training_gflop < 3 * encoder.forward_gflop
    assert last[3].training_gflop == encoder.forward_gflop
    assert parts_of(FakeTask(tiny_task(distillation_weight=0.0)), (64, 64))[3].training_gflop == 0


def test_operations_are_those_of_a_real_step() -> None:
    parts = parts_of(tiny_fake(), (64, 64))
    task = tiny_task()
    task.configure_model()
    forward = model_summary(task.tokenizer, 64)
    assert [p.forward_gflop for p in parts[:3]] == [
        pytest.approx(forward[name]["gflop"], rel=1e-6) for name in ("encoder", "bottleneck", "decoder")
    ]
    assert [p.trained for p in parts[:3]] == [forward[p.name]["parameters"] for p in parts[:3]]
    images = torch.rand(1, 3, 64, 64)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student = task.tokenizer.encoder(images)
        latents, _ = task.tokenizer.bottleneck(student)
        loss = sum(task.tokenizer.decoder.loss(latents, images).values())
        (loss + task.distances(student, task.teacher(images)).sum()).backward()
    assert sum(p.training_gflop for p in parts) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.05)


def test_nothing_is_allocated() -> None:
    fake = FakeTask(tiny_task(encoder=partial(DINOv2, variant="g14", weights=None), decoder=FLOW))
    assert 1.1e9 < sum(p.numel() for p in fake.task.tokenizer.encoder.parameters()) < 1.2e9
    weights = [*fake.task.parameters(), *fake.task.teacher.parameters(), *fake.task.buffers()]
    assert all(isinstance(weight, FakeTensor) for weight in weights)
    assert fake.sizes()["parameters"] == sum(w.nbytes for w in (*fake.task.parameters(), *fake.task.buffers()))
    assert sum(tensor.requires_grad for tensor in fake.task.teacher.parameters()) == 0


def test_hours() -> None:
    # 36 million images of 1 TFLOP each, on 10 GPUs of 100 TFLOP/s at half of that
    assert training_hours(36e6, 1000, devices=10, device_tflops=100, mfu=0.5) == pytest.approx(20)


def test_command(uniflow: Callable[..., Any]) -> None:  # noqa: F811
    """A recipe and its overrides; the encoder's weights are not there, and not fetched."""
    options = ["-c", "recipe.yaml", "--batch_size", "2", "--devices", "8", "--json", "plan.json"]
    encoder = ["--model.encoder", "DINOv2", "--model.encoder.variant", "s14", "--model.encoder.depth", "1"]
    result = uniflow("plan", *options, *encoder, "--image_size", "28")
    assert result.code == 0, result.err
    assert "DINOv2" in result.out
    assert "hours on 8 GPUs" in result.out
    plan = json.loads(Path("plan.json").read_text())
    assert plan["parts"][0]["trained"] == pytest.approx(2.53e6, rel=0.01)
    assert (plan["batch_size"], plan["devices"], plan["size"]) == (2, 8, [28, 28])
    assert {(m["precision"], m["checkpointing"]) for m in plan["memory"]} == {
        (precision, checkpointing)
        for precision in ("float32", "bf16-mixed")
        for checkpointing in (False, "selective", True)
    }
    assert plan["images"] % 16 == 0
    assert {p.name for p in Path().iterdir()}.isdisjoint({"runs", "lightning_logs"})


def simulate_only(monkeypatch: pytest.MonkeyPatch, precisions: tuple[bool, ...], modes: tuple[object, ...]) -> None:
    """Plans have memory in these precisions and modes of activation checkpointing alone, since each takes a second."""

    def few(fake: FakeTask, shape: tuple[int, ...], **options: Any) -> list[Memory]:
        wanted = options["mixed"] in precisions and options["checkpointing"] in modes
        return memory_of(fake, shape, **options) if wanted else []

    monkeypatch.setattr("uniflow.tools.plan.memory_of", few)


def test_of_a_run(uniflow: Callable[..., Any], fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Its config.yaml holds options that a plan does not use."""
    simulate_only(monkeypatch, (False,), (False,))
    config = str(fitted / "config.yaml")
    assert uniflow("plan", "-c", "recipe.yaml", "--json", "recipe.json").code == 0
    assert uniflow("plan", "-c", config, "--json", "run.json").code == 0
    assert uniflow("plan", "-c", config, "--ema", "null", "--json", "no_ema.json").code == 0
    recipe, run, no_ema = (json.loads(Path(f"{name}.json").read_text()) for name in ("recipe", "run", "no_ema"))
    assert run == recipe != no_ema
    assert [memory["average"] > 0 for memory in run["memory"]] == [True, True]
    assert [memory["average"] for memory in no_ema["memory"]] == [0, 0]


def test_table(uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    sizes = {str(depth): ["SceneViT", "--model.encoder.depth", str(depth)] for depth in (1, 2)}
    monkeypatch.setattr("uniflow.tools.plan.SIZES", sizes)
    simulate_only(monkeypatch, (True,), (False, True))  # which the table shows
    result = uniflow("plan", "-c", "recipe.yaml", "--table", "true")
    assert result.code == 0, result.err
    rows = [line.split("|") for line in result.out.splitlines() if line.startswith("|")]
    assert [row[1].strip() for row in rows[2:]] == ["1", "2"]
    assert float(rows[3][3].replace(",", "")) >= float(rows[2][3].replace(",", ""))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--mfuu", "1"], "there is no option --mfuu; did you mean --mfu?"),
        (["--model", "TokeniserTask"], "did you mean TokenizerTask?"),
        (["--mfu", "0"], "--mfu must lie in (0, 1]"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--device_tflops", "0"], "--device_tflops must be positive"),
        (["--image_size", "33"], "multiples of the patch size"),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], "max_steps or max_epochs"),
    ],
)
def test_errors(uniflow: Callable[..., Any], options: list[str], error: str) -> None:  # noqa: F811
    assert error in uniflow("plan", "-c", "recipe.yaml", *options).error
