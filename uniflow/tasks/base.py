"""What every task shares: optimizer, learning-rate schedule, training progress, per-step randomness, and hooks."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from uniflow.core.imports import class_path
from uniflow.core.numbers import CheckedNumbers
from uniflow.core.resuming import HINT
from uniflow.layers.blocks import Checkpointing, checkpoint_blocks, compile_blocks, find_blocks
from uniflow.sharding.strategy import spread
from uniflow.start.weights import load_initial
from uniflow.training.optimizers import FusedAdamW, check_finite, parameter_groups
from uniflow.training.resume import ResumableLR, let_options_win
from uniflow.training.schedules import CosineSchedule, Schedule, Warmup, as_schedule

OptimizerFactory = Callable[[Iterable], Optimizer]


@dataclass(frozen=True)
class Stage:
    """One network of a training step, for `uniflow plan`.

    Attributes:
        name: of the network.
        modules: what it is made of.
        run: runs it on the images that `Task.stages` was given, after the stages before it.
        in_graph: whether gradients pass through it to the stages before; a teacher is beside the graph.
        in_training: whether a training step runs it.
    """

    name: str
    modules: list[nn.Module]
    run: Callable[[], Any]
    in_graph: bool = True
    in_training: bool = True


class Task(CheckedNumbers, LightningModule):
    """Base class of all tasks.

    A subclass takes its parts in the constructor, builds them in `build` and implements Lightning's steps. Its
    constructor takes `**task` and passes it on. Callbacks, checkpoints, reports and plans use the hooks below, and
    nothing else of a task.

    Attributes:
        monitor: the metric by which RUN/best.ckpt is chosen, and whether "min" or "max" of it is best; None writes
            none.

    Args:
        optimizer: parameter groups -> optimizer; its learning rate is the peak.
        lr_schedule: factor on the learning rate over training progress; None is 5 % warm-up, then cosine to 1 %.
        activation_checkpointing: true: keep only the input of each trained block for the backward pass, and compute the
            rest again: least memory, up to a third more computation. "selective": keep the results of linear layers and
            of fused attention, too, and compute only what is cheap again.
        compile_blocks: compile each block with `torch.compile`; takes a while at the start.
        init_from: a checkpoint, the folder of a tokenizer, "embedded", or RUN/generator, whose weights the training
            starts from, without optimizer state and step count. They have to fit exactly; a checkpoint's averaged
            weights are taken where it has them. A tokenizer's start (`start: regression`) is left out then. Not read
            when a run is resumed.
    """

    monitor: ClassVar[tuple[str, Literal["min", "max"]] | None] = None

    def __init__(
        self,
        optimizer: OptimizerFactory = FusedAdamW,
        lr_schedule: Schedule | None = None,
        activation_checkpointing: Checkpointing = False,
        compile_blocks: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.init_from = init_from
        self._optimizer = optimizer
        schedule = Warmup(0.05, CosineSchedule(1.0, 0.01)) if lr_schedule is None else lr_schedule
        self._lr_schedule = as_schedule(schedule, f"{type(self).__name__}.lr_schedule")
        self._total_steps: float = math.inf
        self._built = False
        self._saved_optimizer: str | None = None  # its class, in the checkpoint that is resumed

    @abstractmethod
    def build(self) -> None:
        """Make the modules. Called once, on the device and in the precision that Lightning has set up."""

    @classmethod
    def default_callbacks(cls) -> dict[str, type[Callback]]:
        """Callbacks that `uniflow fit` adds for this task: name of the top-level option -> class."""
        return {}

    def report(self) -> dict[str, Any]:
        """What RUN/test_results.json says besides the logged metrics; for JSON."""
        return {}

    def report_tables(self) -> dict[str, list[dict[str, Any]]]:
        """Tables of the test, written as RUN/test_NAME.csv: name -> rows."""
        return {}

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """What to show of the first `count` images of a batch: title -> images (n, 3, H, W), float in [0, 1].

        Called in evaluation mode without gradients. Empty if there is nothing to show.
        """
        return {}

    def print_summary(self, image_size: int | tuple[int, int] | None) -> bool:
        """Print the parts at the start of a fit; False leaves that to Lightning's own summary."""
        return False

    def example_batch(self, images: Tensor) -> dict[str, Any]:
        """A training batch around `images`, uint8 (B, 3, H, W), for `uniflow plan`: only shapes and types matter."""
        return {"image": images}

    def stages(self, images: Tensor) -> Iterator[Stage]:
        """The networks of a training step in order, for the cost in `uniflow plan`; `images` as in `example_batch`.

        By default the parts are listed without their cost, as one stage of the whole training step.
        """
        yield Stage("all", list(self.parts()), lambda: self.training_step(self.example_batch(images), 0))

    def use_full_cost(self) -> None:
        """Set schedules that switch parts of a step off to where the step costs most, for `uniflow plan`."""

    def rounded_networks(self) -> list[nn.Module]:
        """Frozen networks whose weights are stored as mixed precision rounds them, for `uniflow plan`."""
        return []

    def configure_model(self) -> None:
        if not self._built:  # Lightning may call this hook more than once
            self.build()
            self._built = True
            self._prepare_blocks()
            if self._trainer is not None:
                spread(list(self.parts()), self.trainer.strategy)

    def parts(self) -> Iterator[nn.Module]:
        """The networks that are compiled, checkpointed and sharded, each used through its own `forward` or one of its
        `entry_points`."""
        for child in self.children():
            yield from child if isinstance(child, nn.ModuleList) else [child]

    def _prepare_blocks(self) -> None:
        for part in self.parts():
            blocks = find_blocks(part)
            trained = [block for block in blocks if any(p.requires_grad for p in block.parameters())]
            checkpoint_blocks(trained, self.activation_checkpointing)
            if self.compile_blocks:
                compile_blocks(blocks)

    def lr_multiplier(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return 1.0

    @property
    def progress(self) -> float:
        """Share of training that is done, in [0, 1]; 1 outside of fit."""
        if not math.isfinite(self._total_steps):
            return 1.0
        return min(1.0, self.global_step / max(1.0, self._total_steps - 1))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("the learning-rate schedule needs an end of training: set trainer.max_steps or max_epochs")
        self._total_steps = float(total)
        groups = parameter_groups(self, self.lr_multiplier)
        if not groups:
            raise ValueError("nothing to train: every parameter of the model is frozen")
        optimizer = self._optimizer(groups)
        check_finite(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * group["multiplier"]
        schedule = self._lr_schedule
        last = max(1.0, self._total_steps - 1)
        let_options_win(optimizer, lambda: self._saved_optimizer)
        scheduler = ResumableLR(optimizer, lambda step: schedule(min(1.0, step / last)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.optimizers:
            checkpoint["optimizer_class"] = class_path(type(self.trainer.optimizers[0]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved_optimizer = checkpoint.get("optimizer_class")
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if self.trainer.strategy.lightning_restore_optimizer and "optimizer_states" not in checkpoint:
            raise ValueError(f"the checkpoint holds weights alone, without the optimizer's state; {HINT}")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Lightning frees gradients after the next forward pass only, beside whose activations they would be held.
        optimizer.zero_grad()

    def on_train_start(self) -> None:
        # Not before: only now it is known whether a checkpoint has been restored.
        if self.init_from is not None and not self.trainer.ckpt_path:
            load_initial(self, self.init_from)
            rank_zero_info(f"start: the weights of {self.init_from}")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Randomness is a function of (seed, batch, rank), so a resumed run draws what the uninterrupted one drew.
        total = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(step_seed(total, self.global_rank))


def step_seed(*position: int) -> int:
    """A seed for torch from the run's seed (`seed_everything`) and a position such as (batch, rank)."""
    run_seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    return int(np.random.SeedSequence([run_seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
