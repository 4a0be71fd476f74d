"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.depth import DepthTask
from uniflow.tasks.features import FeatureTask
from uniflow.tasks.pretraining import Pretraining
from uniflow.tasks.segmentation import SegmentationTask
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.training.optimizers import FusedAdamW

__all__ = ["DepthTask", "FeatureTask", "FusedAdamW", "Pretraining", "SegmentationTask", "Task", "TokenizerTask"]
