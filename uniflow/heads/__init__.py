"""Heads: features -> a prediction, its loss and its metrics."""

from uniflow.heads.base import Head
from uniflow.heads.dense import ColorHead, DenseHead, DepthHead, MaskHead
from uniflow.heads.detection import DetectionHead, FasterRCNNHead, FCOSHead, MaskRCNNHead
from uniflow.heads.label import LabelHead
from uniflow.heads.unsupervised import PatchHead, TeacherHead

__all__ = [
    "ColorHead",
    "DenseHead",
    "DepthHead",
    "DetectionHead",
    "FCOSHead",
    "FasterRCNNHead",
    "Head",
    "LabelHead",
    "MaskHead",
    "MaskRCNNHead",
    "PatchHead",
    "TeacherHead",
]
