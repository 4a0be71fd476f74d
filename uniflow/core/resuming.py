"""What is said of a checkpoint that cannot be resumed with the present options."""

from __future__ import annotations

from torch.optim import Optimizer

from uniflow.core.imports import class_path

HINT = "to start from the checkpoint's weights alone, set model.init_from to it and leave ckpt_path out"


def refuse_other_optimizer(optimizer: Optimizer, saved_class: str | None) -> None:
    """Refuse the state of an optimizer of another class; None is that of a checkpoint that does not say.

    Raises:
        ValueError: naming both.
    """
    present = class_path(type(optimizer))
    if saved_class is not None and saved_class != present:
        raise ValueError(f"the checkpoint holds the state of {saved_class}, and model.optimizer is {present}; {HINT}")
