"""The training step on a CUDA device: its distances, its teacher, and the check of the loss that does not wait."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from tiny import ENCODER, fit, tiny_scenes, tiny_task

from uniflow.callbacks import EMA, Stability
from uniflow.callbacks.stability import NonFiniteLossError
from uniflow.decoders import RegressionDecoder
from uniflow.distill import FrozenTeacher
from uniflow.distill.distance import token_cosines

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cosines_are_those_of_float32_copies(dtype):
    a, b = torch.randn(2, 4, 64, 384, device="cuda", dtype=dtype).unbind(0)
    expected = F.cosine_similarity(a.float(), b.float(), dim=-1)
    torch.testing.assert_close(token_cosines(a, b), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_teacher_gives_the_same_states(dtype):
    teacher = FrozenTeacher(ENCODER()).cuda()
    images = torch.rand(2, 3, 32, 32, device="cuda")
    with torch.autocast("cuda", dtype):
        expected = teacher(images).hidden_states
        teacher.round_weights(dtype)
        found = teacher(images).hidden_states
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


class Broken(RegressionDecoder):
    """Its third loss is not a number."""

    calls = 0

    def loss(self, latents, images):
        type(self).calls += 1
        [(name, value)] = super().loss(latents, images).items()
        return {name: value * (float("nan") if type(self).calls == 3 else 1)}


def test_a_loss_that_is_no_number_is_found_a_step_later(tmp_path):
    Broken.calls = 0
    task = tiny_task(decoder=partial(Broken, width=32, num_heads=2, global_depth=1, head_depth=1))
    with pytest.raises(NonFiniteLossError, match="nan at step 2"):
        fit(task, tiny_scenes(), tmp_path, callbacks=[Stability()], steps=6, accelerator="gpu", devices=1)
    assert Broken.calls == 4
    kept = torch.load(tmp_path / "nonfinite_batch_rank0.pt", weights_only=True)
    assert kept["global_step"] == 2


def test_a_step_with_the_check_does_not_wait_for_the_device(tmp_path):
    from torch.cuda import set_sync_debug_mode

    stability = Stability()
    trainer, module = type("Trainer", (), {"global_step": 0, "current_epoch": 0})(), torch.nn.Linear(1, 1)
    loss = torch.ones((), device="cuda")
    set_sync_debug_mode("error")
    try:
        for step in range(3):
            stability.on_train_batch_start(trainer, module, {}, step)
            stability.on_before_backward(trainer, module, loss)
    finally:
        set_sync_debug_mode("default")


class WithoutWaiting(Callback):
    """From the third step on, whatever waits for the device between the start and the end of a step is an error."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if batch_idx >= 2 else "default")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_whole_step_waits_for_the_device(tmp_path, precision):
    """The same on the CPU, for more kinds of steps: tests/training/test_no_waiting.py."""
    trainer = Trainer(
        max_steps=5, accelerator="gpu", devices=1, precision=precision, gradient_clip_val=1.0, logger=False,
        callbacks=[WithoutWaiting(), EMA(0.9), Stability()], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    try:
        trainer.fit(tiny_task(), tiny_scenes())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 5


def test_the_benchmark_of_the_gpu_runs_at_tiny_size(capsys):
    from benchmarks import gpu

    assert gpu.main(["--tiny", "--parts", "inference", "difference"]) == 0
    assert "encode, batch 1, compiled, " in capsys.readouterr().out
