"""What Lightning's `Trainer` and modules know at run time, which its types do not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn


def is_dry_run(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def data_of(trainer: Trainer) -> Any:
    """The data module, or None."""
    return getattr(trainer, "datamodule", None)


def has_split(data: Any, split: str) -> bool:
    """Whether a data module has a loader for `split` ("train", "val", "test")."""
    return data is not None and is_overridden(f"{split}_dataloader", data, LightningDataModule)


def is_logged_step(trainer: Trainer, ahead: int = 1) -> bool:
    """Whether the step that is `ahead` of the steps done so far is logged (`trainer.log_every_n_steps`)."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (trainer.global_step + ahead) % every == 0


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as before."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def step_images(trainer: Trainer | None) -> int:
    """Images that all processes together use for one step of the optimizer.

    Raises:
        ValueError: if the data module does not say its `batch_size`, or there is none.
    """
    batch_size = getattr(data_of(trainer), "batch_size", None) if trainer is not None else None
    if trainer is None or not isinstance(batch_size, int):
        raise ValueError("learning rates scaled by the batch need a data module with `batch_size`, images per process")
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches
