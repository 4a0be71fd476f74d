"""Memory of one GPU in training, from the lifetimes of a step's tensors and from sizes."""

from __future__ import annotations

from dataclasses import dataclass

from uniflow.layers.blocks import Checkpointing
from uniflow.plan.simulate import FakeTask


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the peak of a training step.

    CUDA's context, libraries' workspaces, NCCL's buffers and what the allocator cannot use come on top.

    Attributes:
        precision: "float32" or "bf16-mixed".
        strategy: "ddp", "fsdp2", or "fsdp2 gathering bfloat16" (`FSDP2.gather_dtype`).
        checkpointing: False, "selective" or True, as `Task` has it.
        parameters: the trained task's weights, frozen ones and buffers included.
        gradients: of trained parameters.
        optimizer: its states.
        average: the EMA of the trained parameters.
        teacher: frozen networks beside the trained ones; in mixed precision without sharding their linear and
            convolutional layers are stored in bfloat16.
        activations: the most that lives besides: activations, weights cast by autocast, temporaries.
        buckets: DDP's copy of the gradients, for more than one GPU.
        gathered: parameters that FSDP2 has gathered, and the gradient that it has not shared out yet.
        total: the most of all at a time; less than the sum, because gradients come as activations go.
    """

    precision: str
    strategy: str
    checkpointing: Checkpointing
    parameters: int
    gradients: int
    optimizer: int
    average: int
    teacher: int
    activations: int
    buckets: int
    gathered: int
    total: int


def memory_of(
    fake: FakeTask,
    shape: tuple[int, ...],
    *,
    devices: int = 1,
    mixed: bool,
    checkpointing: Checkpointing,
    average: bool = True,
    accumulate: bool = False,
    device: str = "cuda",
) -> list[Memory]:
    """Memory of one GPU under DDP and under FSDP2.

    With P, G, O, A bytes of parameters, gradients, optimizer states and average, T of the teacher, R of all parameters
    outside of blocks, B of the largest block, N GPUs, and at each time of a step s of gradients and a of all else:

        DDP    P + O + A + T + max over time of (a + s), and G for DDP's buckets if N > 1
        FSDP2  (P + O + A + T) / N + max over time of (a + s / N) + g (R + 2 B) + B

    g is 1/2 where parameters are gathered in bfloat16, else 1. Blocks are gathered one ahead of their use, hence 2 B;
    the last B is a block's gradient in float32, before it is shared out. A block's parameters are freed after its
    forward pass; those outside of blocks, also the teacher's, are not. Parameters gathered in float32 are cast by
    autocast, and the casts are kept for the backward pass: they are in a, and not sharded.

    Args:
        fake: the task.
        shape: of the batch of images in one process, (B, 3, H, W).
        devices: GPUs, N.
        mixed: see `FakeTask.step`, as for the others.
        checkpointing: as in `FakeTask.step`.
        average: whether there is an EMA of the trained parameters.
        accumulate: whether gradients are accumulated over several batches.
        device: "cuda" or "cpu", whose autocast is followed.

    Returns:
        Under DDP, under FSDP2, and for `mixed` under FSDP2 that gathers bfloat16.
    """
    step = fake.step(
        shape, mixed=mixed, checkpointing=checkpointing, shards=devices, accumulate=accumulate, device=device
    )
    sizes = fake.sizes()
    states = {
        "parameters": sizes["parameters"],
        "gradients": step.gradients,
        "optimizer": step.optimizer,
        "average": sizes["trained"] if average else 0,
        "teacher": sizes["teacher"],
    }
    rows = []
    for strategy, peak in step.peak.items():
        in_bfloat16 = strategy.endswith("bfloat16")
        if in_bfloat16 and not mixed:
            continue
        if strategy == "ddp":
            shares = {**states, "teacher": sizes["teacher"] - (sizes["rounded"] if mixed else 0)}
            buckets, gathered = step.gradients if devices > 1 else 0, 0
        else:
            shares = {name: -(-size // devices) for name, size in states.items()}
            in_use = sizes["rest"] + 2 * sizes["block"]
            buckets, gathered = 0, (in_use // 2 if in_bfloat16 else in_use) + sizes["block"]
        rows.append(
            Memory(
                "bf16-mixed" if mixed else "float32", strategy, checkpointing, **shares,
                activations=step.activations[strategy], buckets=buckets, gathered=gathered,
                total=sum(shares.values()) - shares["gradients"] + peak + buckets + gathered,
            )
        )  # fmt: skip
    return rows
