"""Layer-wise self-distillation: the student's hidden states stay near those of its frozen original."""

from uniflow.distill.distance import cosine_distances, image_cosines, tokens_to_match
from uniflow.distill.teacher import FrozenTeacher
from uniflow.distill.weighting import Adaptive, DepthPrior, LastLayer, LayerWeighting, UniformWeighting
from uniflow.training import ConstantSchedule, CosineSchedule, LinearSchedule, Piecewise, Schedule, Warmup

# Names that configs of earlier versions have.
Uniform = UniformWeighting
Constant, Cosine, Linear = ConstantSchedule, CosineSchedule, LinearSchedule

__all__ = [
    "Adaptive",
    "DepthPrior",
    "FrozenTeacher",
    "LastLayer",
    "LayerWeighting",
    "Piecewise",
    "Schedule",
    "UniformWeighting",
    "Warmup",
    "cosine_distances",
    "image_cosines",
    "tokens_to_match",
]
