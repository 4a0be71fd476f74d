"""Tasks: one LightningModule for each problem."""

from uniflow.tasks.base import Task
from uniflow.tasks.classification import ClassificationTask
from uniflow.tasks.depth import DepthTask
from uniflow.tasks.detection import DetectionTask
from uniflow.tasks.features import FeatureTask
from uniflow.tasks.generation import GenerationTask
from uniflow.tasks.pretraining import Pretraining
from uniflow.tasks.segmentation import SegmentationTask
from uniflow.tasks.tokenizer import TokenizerTask
from uniflow.tasks.vqa import VisualQuestionTask
from uniflow.training.optimizers import FusedAdamW

__all__ = [
    "ClassificationTask",
    "DepthTask",
    "DetectionTask",
    "FeatureTask",
    "FusedAdamW",
    "GenerationTask",
    "Pretraining",
    "SegmentationTask",
    "Task",
    "TokenizerTask",
    "VisualQuestionTask",
]
