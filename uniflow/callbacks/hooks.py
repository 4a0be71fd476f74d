"""What callbacks use of a task: its hooks, and the tokenizer that it trains, if there is one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule
from torch import Tensor

from uniflow.tokenizer import Tokenizer


@runtime_checkable
class TaskHooks(Protocol):
    """The hooks of `uniflow.tasks.Task`, where they are documented."""

    def report(self) -> dict[str, Any]: ...
    def report_tables(self) -> dict[str, list[dict[str, Any]]]: ...
    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]: ...
    def print_summary(self, image_size: int | tuple[int, int] | None) -> bool: ...


def hooks_of(pl_module: LightningModule) -> TaskHooks | None:
    """The module as a task; None for a LightningModule without these hooks."""
    return pl_module if isinstance(pl_module, TaskHooks) else None


def tokenizer_of(pl_module: LightningModule) -> Tokenizer | None:
    """The task's attribute `tokenizer`; None if it trains none."""
    tokenizer = getattr(pl_module, "tokenizer", None)
    return tokenizer if isinstance(tokenizer, Tokenizer) else None
