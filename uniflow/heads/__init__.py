"""Heads: features -> a prediction, its loss and its metrics."""

from uniflow.heads.base import Head
from uniflow.heads.dense import ColorHead, DenseHead, DepthHead, MaskHead
from uniflow.heads.depth import LinearDepth, MetricDepthHead
from uniflow.heads.detection import DetectionHead, FasterRCNNHead, FCOSHead, MaskRCNNHead
from uniflow.heads.dpt import DPTDepth
from uniflow.heads.label import ClassificationHead, LabelHead
from uniflow.heads.maps import MapHead
from uniflow.heads.mask2former import Mask2Former
from uniflow.heads.segmentation import LinearSegmentation, SegmentationHead
from uniflow.heads.sweep import AttentiveProbeHead, LinearSweepHead, SweepHead
from uniflow.heads.unsupervised import PatchHead, TeacherHead
from uniflow.heads.upernet import UPerNet
from uniflow.heads.zero_shot import ZeroShotHead

__all__ = [
    "AttentiveProbeHead",
    "ClassificationHead",
    "ColorHead",
    "DPTDepth",
    "DenseHead",
    "DepthHead",
    "DetectionHead",
    "FCOSHead",
    "FasterRCNNHead",
    "Head",
    "LabelHead",
    "LinearDepth",
    "LinearSegmentation",
    "LinearSweepHead",
    "MapHead",
    "Mask2Former",
    "MaskHead",
    "MaskRCNNHead",
    "MetricDepthHead",
    "PatchHead",
    "SegmentationHead",
    "SweepHead",
    "TeacherHead",
    "UPerNet",
    "ZeroShotHead",
]
