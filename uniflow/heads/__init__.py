"""Heads: features -> a prediction, its loss and its metrics."""

from uniflow.heads.base import Head
from uniflow.heads.dense import ColorHead, DenseHead, DepthHead, MaskHead
from uniflow.heads.label import LabelHead
from uniflow.heads.unsupervised import PatchHead, TeacherHead

__all__ = [
    "ColorHead",
    "DenseHead",
    "DepthHead",
    "Head",
    "LabelHead",
    "MaskHead",
    "PatchHead",
    "TeacherHead",
]
