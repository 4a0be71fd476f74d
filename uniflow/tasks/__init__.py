"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.optim import FusedAdamW
from uniflow.tasks.tokenizer import TokenizerTask

__all__ = ["FusedAdamW", "Task", "TokenizerTask"]
