"""Layer-wise self-distillation: the student's hidden states stay near those of its frozen original."""

from uniflow.distill.distance import cosine_distances, image_cosines, tokens_to_match
from uniflow.distill.schedule import Constant, Cosine, Linear, Piecewise, Schedule, Warmup, as_schedule
from uniflow.distill.teacher import FrozenTeacher
from uniflow.distill.weighting import Adaptive, DepthPrior, LastLayer, LayerWeighting, Uniform

__all__ = [
    "Adaptive",
    "Constant",
    "Cosine",
    "DepthPrior",
    "FrozenTeacher",
    "LastLayer",
    "LayerWeighting",
    "Linear",
    "Piecewise",
    "Schedule",
    "Uniform",
    "Warmup",
    "as_schedule",
    "cosine_distances",
    "image_cosines",
    "tokens_to_match",
]
