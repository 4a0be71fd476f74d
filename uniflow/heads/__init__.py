"""Heads: features -> a prediction, its loss and its metrics."""

from uniflow.heads.base import Head
from uniflow.heads.dense import ColorHead, DenseHead, DepthHead, MaskHead
from uniflow.heads.depth import LinearDepth, MetricDepthHead
from uniflow.heads.dpt import DPTDepth
from uniflow.heads.label import LabelHead
from uniflow.heads.maps import MapHead
from uniflow.heads.segmentation import LinearSegmentation, SegmentationHead
from uniflow.heads.unsupervised import PatchHead, TeacherHead
from uniflow.heads.upernet import UPerNet

__all__ = [
    "ColorHead",
    "DPTDepth",
    "DenseHead",
    "DepthHead",
    "Head",
    "LabelHead",
    "LinearDepth",
    "LinearSegmentation",
    "MapHead",
    "MaskHead",
    "MetricDepthHead",
    "PatchHead",
    "SegmentationHead",
    "TeacherHead",
    "UPerNet",
]
