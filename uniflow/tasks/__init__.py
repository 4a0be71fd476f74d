"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.classification import ClassificationTask
from uniflow.tasks.features import FeatureTask
from uniflow.tasks.pretraining import Pretraining
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.training.optimizers import FusedAdamW

__all__ = ["ClassificationTask", "FeatureTask", "FusedAdamW", "Pretraining", "Task", "TokenizerTask"]
