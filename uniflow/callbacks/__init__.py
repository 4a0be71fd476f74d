"""Callbacks that every run has unless it drops them."""

from uniflow.callbacks.codebook import CodebookUsage
from uniflow.callbacks.ema import EMA
from uniflow.callbacks.export import TokenizerExport
from uniflow.callbacks.gap import TeacherGap
from uniflow.callbacks.images import ImageGrid
from uniflow.callbacks.latents import LatentWriter
from uniflow.callbacks.monitor import Monitor
from uniflow.callbacks.preemption import Preemption
from uniflow.callbacks.results import ResultsFile
from uniflow.callbacks.stability import Stability
from uniflow.callbacks.statistics import LatentStatistics
from uniflow.callbacks.summary import PartsSummary

LinearProbe = TeacherGap  # the name that config.yaml of earlier runs has

__all__ = [
    "EMA",
    "CodebookUsage",
    "ImageGrid",
    "LatentStatistics",
    "LatentWriter",
    "LinearProbe",
    "Monitor",
    "PartsSummary",
    "Preemption",
    "ResultsFile",
    "Stability",
    "TeacherGap",
    "TokenizerExport",
]
