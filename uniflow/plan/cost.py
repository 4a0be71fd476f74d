"""Parameters and floating-point operations of a task's parts, and the hours of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uniflow.plan.simulate import FakeTask

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One network of a task.

    Attributes:
        name: "encoder", "bottleneck", "decoder", "pixel_losses" or "teacher".
        kind: its class; of pixel losses all classes.
        trained: number of trained parameters.
        frozen: number of other parameters; of the teacher those that it does not share with the encoder.
        forward_gflop: 10^9 operations of the matrix products in the forward pass of one image, in training; a
            multiply-add counts as two.
        training_gflop: the same for forward and backward pass.
    """

    name: str
    kind: str
    trained: int
    frozen: int
    forward_gflop: float
    training_gflop: float


def parts_of(fake: FakeTask, size: tuple[int, int]) -> list[Part]:
    """The parts of a task and what they cost for one image of `size` (H, W).

    With F operations in its forward pass, a part takes F for each of: the forward pass, the gradients of its weights
    (times the share that is trained), and the gradients of its inputs (if anything before it is trained, else times
    the same share: only blocks behind the first trained one have them). So it is 3 F for a part that is trained, F for
    a frozen encoder. The teacher takes F, unless nothing is distilled. Recomputation under activation checkpointing is
    not counted, as is usual for model FLOP utilisation.
    """
    task = fake.task
    trained_here = {id(p) for p in task.parameters()}
    rows, before = [], 0
    with fake.mode, torch.no_grad():
        for stage in task.stages(torch.empty(1, 3, *size, dtype=torch.uint8)):
            _, forward = _counted(stage.run)
            parameters = [p for module in stage.modules for p in module.parameters()]
            if not stage.in_graph:
                parameters = [p for p in parameters if id(p) not in trained_here]
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            total = sum(p.numel() for p in parameters)
            share = trained / total if total else 0.0
            backward = share + (1 if before else share) if stage.in_graph else 0.0
            training = forward * (1 + backward) if stage.in_training else 0.0
            kind = ", ".join(type(module).__name__ for module in stage.modules)
            rows.append(Part(stage.name, kind, trained, total - trained, forward, training))
            before += trained if stage.in_graph else 0
    return rows


def _counted(call: Callable[[], T]) -> tuple[T, float]:
    """What `call` returns, and its GFLOP."""
    # Plain attention is made of matrix products that the counter knows; fused kernels differ between devices.
    math = nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
    with math, FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops() / 1e9


def training_hours(images: float, gflop: float, *, devices: int, device_tflops: float, mfu: float) -> float:
    """Hours to train on `images` images, with repetitions.

    Args:
        images: images that all devices together are trained on.
        gflop: of a training step, for each image.
        devices: GPUs.
        device_tflops: 10^12 operations a second that one GPU can do at most, in the precision that is used.
        mfu: share of `device_tflops` that training reaches (model FLOP utilisation).
    """
    return images * gflop / (devices * device_tflops * 1e3 * mfu) / 3600
