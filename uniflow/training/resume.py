"""Going on from a checkpoint: its optimizer state has to fit, and the options of the present run win."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from uniflow.core.resuming import HINT, refuse_other_optimizer

# State of torch's and timm's optimizers that has one value for each value of the parameter. Compiled steps do not
# check its shape: they read beyond its end.
_ELEMENTWISE = (
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "grad_avg", "exp_inf",
    "sum", "ax",
)  # fmt: skip
# What `Task` adds to parameter groups.
_OF_THE_TASK = ("lr", "initial_lr", "multiplier", "name")


class ResumableLR(LambdaLR):
    """A `LambdaLR` of which a checkpoint restores the position alone, not the learning rates of the earlier run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the position of `state_dict`, and set the learning rates that the present options have there."""
        base_lrs = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = base_lrs
        for group, base, factor in zip(self.optimizer.param_groups, base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def let_options_win(optimizer: Optimizer, saved_class: Callable[[], str | None]) -> None:
    """Make `optimizer.load_state_dict` check what it is given, and keep the present settings of parameter groups.

    Args:
        optimizer: changed in place.
        saved_class: gives the class path of the optimizer that wrote the checkpoint, if that is known.
    """

    def restore(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        refuse_other_optimizer(optimizer, saved_class())
        _check_groups(optimizer, saved["param_groups"])
        _check_shapes(optimizer, saved)
        options = {*_OF_THE_TASK, *_settings(type(optimizer))} - {"params"}
        groups = [
            {**old, **{key: value for key, value in new.items() if key in options}}
            for new, old in zip(optimizer.param_groups, saved["param_groups"], strict=True)
        ]
        _tell_changes(saved["param_groups"], groups)
        return {**saved, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(restore)


def _check_groups(optimizer: Optimizer, saved: Iterable[dict[str, Any]]) -> None:
    present, old = ([len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved))
    if present != old:
        raise ValueError(
            f"the checkpoint's optimizer has parameter groups of {old} tensors, and this run has {present}: other "
            f"parts are trained (tune) or other learning-rate multipliers are set; {HINT}"
        )


def _check_shapes(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    present, old = (
        [key for group in groups for key in group["params"]]
        for groups in (optimizer.param_groups, saved["param_groups"])
    )
    parameters = dict(zip(old, present, strict=True))  # by number; by name in a sharded run
    for number, values in saved["state"].items():
        if number not in parameters:
            continue
        for name in _ELEMENTWISE:
            shape = getattr(values.get(name), "shape", None)
            if shape is not None and shape != parameters[number].shape:
                raise ValueError(
                    f"the checkpoint's optimizer state does not fit: {name} of parameter {number} is {tuple(shape)}, "
                    f"not {tuple(parameters[number].shape)}; {HINT}"
                )


def _settings(cls: type) -> set[str]:
    """Arguments of an optimizer's constructors: what else is in its parameter groups is state, as in Prodigy."""
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base) and base is not object]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}


def _tell_changes(saved: Iterable[dict[str, Any]], present: Iterable[dict[str, Any]]) -> None:
    """One line about options that are no longer those of the checkpoint."""
    changes = {
        f"{'lr' if key == 'initial_lr' else key} {new[key]:g} (was {old[key]:g})"
        if isinstance(new[key], float | int)
        else f"{key} {new[key]} (was {old[key]})"
        for old, new in zip(saved, present, strict=True)
        for key in new
        if key not in ("params", "lr", "name") and key in old and _plain(old[key]) != _plain(new[key])
    }
    if changes:
        rank_zero_info(f"resumed with other options than the checkpoint's: {', '.join(sorted(changes))}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
