"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.optim import FusedAdamW
from uniflow.tasks.pretraining import Pretraining
from uniflow.tasks.tokenizer import TokenizerTask

__all__ = ["FusedAdamW", "Pretraining", "Task", "TokenizerTask"]
