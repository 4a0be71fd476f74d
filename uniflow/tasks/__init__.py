"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.features import FeatureTask
from uniflow.tasks.pretraining import Pretraining
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.tasks.vqa import VisualQuestionTask
from uniflow.training.optimizers import FusedAdamW

__all__ = ["FeatureTask", "FusedAdamW", "Pretraining", "Task", "TokenizerTask", "VisualQuestionTask"]
