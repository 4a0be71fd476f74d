"""Heads: features -> a prediction, its loss and its metrics."""

from uniflow.heads.base import Head
from uniflow.heads.dense import ColorHead, DenseHead, DepthHead, MaskHead
from uniflow.heads.detection import DetectionHead, FasterRCNNHead, FCOSHead, MaskRCNNHead
from uniflow.heads.label import ClassificationHead, LabelHead
from uniflow.heads.sweep import AttentiveProbeHead, LinearSweepHead, SweepHead
from uniflow.heads.unsupervised import PatchHead, TeacherHead
from uniflow.heads.zero_shot import ZeroShotHead

__all__ = [
    "AttentiveProbeHead",
    "ClassificationHead",
    "ColorHead",
    "DenseHead",
    "DepthHead",
    "DetectionHead",
    "FCOSHead",
    "FasterRCNNHead",
    "Head",
    "LabelHead",
    "LinearSweepHead",
    "MaskHead",
    "MaskRCNNHead",
    "PatchHead",
    "SweepHead",
    "TeacherHead",
    "ZeroShotHead",
]
