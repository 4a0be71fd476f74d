"""A simulated training step: its tensors have shapes, types and lifetimes, but no content and no memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_iter

from uniflow.distill.teacher import ROUNDED
from uniflow.layers.blocks import Checkpointing, checkpoint_blocks, find_blocks, restore_blocks
from uniflow.plan.live import LiveTensors
from uniflow.tasks import Task


class _FakeTensorMode(FakeTensorMode):
    """Looks for a GPU once; PyTorch's does so for each operator, which takes up to a third of the time."""

    @cached_property
    def avoid_device_init(self) -> bool:
        return super().avoid_device_init


@dataclass(frozen=True)
class Step:
    """Bytes of one training step in one process, weights and the average of weights left out.

    Attributes:
        gradients: of all trained parameters.
        optimizer: the optimizer's states, from its first step on.
        activations: the most that everything else takes at a time, by strategy: activations, casts of weights,
            temporaries.
        peak: the most of activations and (sharded) gradients together, in bytes. Gradients come as activations go, so
            it is less than their sum.
    """

    gradients: int
    optimizer: int
    activations: dict[str, int]
    peak: dict[str, int]


class FakeTask:
    """A complete task on the CPU whose tensors have no content. Nothing is allocated or fetched.

    Args:
        task: made without `pretrained` weights, and not built yet; it is built here.

    Attributes:
        task: the same task.
        mode: the mode in which its tensors can be used.
    """

    def __init__(self, task: Task) -> None:
        task.compile_blocks = False  # it does not change any size
        with torch.device("meta"):
            task.configure_model()
        self.task, self.mode = task, _FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            _empty([task, *networks_beside(task)])
        task.train()
        # Logging is the only thing that a step wants of a running loop.
        vars(task).update(log=_ignore, log_dict=_ignore)
        self._update: tuple[int, float] | None = None
        self._trainer = quiet_trainer()  # the task holds it weakly
        task.trainer = self._trainer
        task.use_full_cost()

    def step(
        self,
        shape: tuple[int, ...],
        *,
        mixed: bool,
        checkpointing: Checkpointing,
        shards: int = 1,
        accumulate: bool = False,
        device: str = "cuda",
    ) -> Step:
        """Run one training step: forward, backward, optimizer; it gives the gradients back at its end, as `Task` does.

        Args:
            shape: of the batch of images in one process, (B, 3, H, W).
            mixed: autocast to bfloat16 (`bf16-mixed`), else float32.
            checkpointing: of every trained block of encoder and decoder, as `checkpoint_blocks` has it.
            shards: processes that share parameters, gradients and states under FSDP2.
            accumulate: gradients are accumulated over several batches, so that they live through forward and backward.
            device: "cuda" or "cpu", whose autocast is followed.

        Raises:
            ValueError: if the step cannot be run without values.
        """
        task = self.task
        weights = {"ddp": (1.0, 1.0), "fsdp2": (1 / shards, 1.0), "fsdp2 gathering bfloat16": (1 / shards, 0.0)}
        counted = LiveTensors([*weights.values(), (0, 0), (0, 1)])
        with _shapes_only(self.mode), _blocks(task, checkpointing), _cuda_casts(task, device), counted as tensors:
            tensors.ignore(_tensors([task, *networks_beside(task)]))
            tensors.watch(task.parameters())
            images = torch.empty(shape, dtype=torch.uint8)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss: Any = task.training_step(task.example_batch(images), 0)
            forward = dict(tensors.peaks)
            tensors.reset()
            loss.backward()
            del loss
            backward, gradients = dict(tensors.peaks), tensors.gradients
            if self._update is None:  # the same whatever the precision
                self._update = _update(task, tensors)
            task.zero_grad()
        states, temporary = self._update
        activations, peak = {}, {}
        for strategy, (share, casts) in weights.items():
            others = max(forward[0, casts], backward[0, casts])
            kept = others + share * gradients if accumulate else max(forward[0, casts], backward[share, casts])
            activations[strategy] = round(max(others, share * temporary))
            peak[strategy] = round(max(kept, share * (gradients + temporary)))
        return Step(gradients, states, activations, peak)

    def sizes(self) -> dict[str, int]:
        """Bytes: `parameters`, the task's own weights, buffers included; `trained`, those with a gradient; `teacher`,
        frozen networks beside it, as far as they do not share the task's weights; `rounded`, how much less that is in
        mixed precision without sharding, where the teacher's weights are stored rounded; and what FSDP2 gathers, of
        the largest block (`block`) and of all that is in no block (`rest`)."""
        task = self.task
        own = list(_tensors([task]))
        mine = {tensor.untyped_storage()._cdata for tensor in own}
        beside = [t for t in _tensors(networks_beside(task)) if t.untyped_storage()._cdata not in mine]
        blocks = [_bytes(block.parameters()) for block in _all_blocks(task)]
        parameters = _bytes(p for part in task.parts() for p in part.parameters())
        return {
            "parameters": _bytes(own),
            "trained": _bytes(p for p in task.parameters() if p.requires_grad),
            "teacher": _bytes(beside),
            "rounded": _bytes(t for t in _rounded(task) if t.untyped_storage()._cdata not in mine) // 2,
            "block": max(blocks, default=0),
            "rest": parameters - sum(blocks),
        }


def _rounded(task: Task) -> Iterator[Tensor]:
    modules = (module for network in task.rounded_networks() for module in network.modules())
    return (p for module in modules if isinstance(module, ROUNDED) for p in module.parameters(recurse=False))


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Replaces the functions that log."""


@contextlib.contextmanager
def _shapes_only(mode: FakeTensorMode) -> Iterator[None]:
    try:
        with mode:
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"this task cannot be planned: a step's sizes depend on values, through {error.func}"
        ) from error


def _update(task: Task, tensors: LiveTensors) -> tuple[int, float]:
    """Bytes of the optimizer's states, and those that its step takes for a time."""
    made: Any = task.configure_optimizers()
    optimizer = made["optimizer"]
    optimizer.step()  # makes the states
    before = tensors.live
    tensors.reset()
    optimizer.step()
    states = _bytes(leaf for leaf in tree_iter(dict(optimizer.state)) if isinstance(leaf, Tensor))
    return states, tensors.peaks[1, 1] - before


def networks_beside(task: nn.Module) -> list[nn.Module]:
    """Networks that modules of `task` hold outside the module tree: the teacher, a perceptual loss's backbone."""
    return [value for module in task.modules() for value in vars(module).values() if isinstance(value, nn.Module)]


def _all_blocks(task: Task) -> list[nn.Module]:
    return [block for part in task.parts() for block in find_blocks(part)]


def _empty(networks: Iterable[nn.Module]) -> None:
    """Replace parameters and buffers by empty ones on the CPU; those that are shared stay so."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one is kept, so that its id stays its own

    def empty(old: Tensor) -> Tensor:
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype)
            made[id(old)] = (old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        return made[id(old)][1]

    for network in networks:
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: empty(old) for name, old in tensors.items() if old is not None})  # type: ignore[misc]


def _tensors(networks: Iterable[nn.Module]) -> Iterator[Tensor]:
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@contextlib.contextmanager
def _cuda_casts(task: nn.Module, device: str) -> Iterator[None]:
    """On CUDA, norms under autocast take and give float32; on the CPU they keep their input's type."""

    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        low = torch.is_autocast_enabled("cpu") and inputs[0].dtype in (torch.bfloat16, torch.float16)
        return (inputs[0].float(), *inputs[1:]) if low else inputs

    norms = [m for m in task.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm) and device == "cuda"]
    hooks = [norm.register_forward_pre_hook(cast) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _blocks(task: Task, checkpointing: Checkpointing) -> Iterator[None]:
    """All trained blocks checkpointed in this way, whatever the task's own settings."""
    parts: Iterable[Any] = task.parts()
    for part in parts:
        if hasattr(part, "set_gradient_checkpointing"):
            part.set_gradient_checkpointing(False)
    restore_blocks(task)
    trained = [block for block in _all_blocks(task) if any(p.requires_grad for p in block.parameters())]
    checkpoint_blocks(trained, checkpointing)
    try:
        yield
    finally:
        restore_blocks(task)


def quiet_trainer() -> Trainer:
    """A trainer of one CPU process that does nothing by itself."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what hardware this machine has does not matter here
    try:
        return Trainer(
            accelerator="cpu", devices=1, max_steps=1, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
    finally:
        logger.setLevel(level)
