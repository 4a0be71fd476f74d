"""Callbacks that every run has unless it drops them."""

from uniflow.callbacks.ema import EMA
from uniflow.callbacks.export import TokenizerExport
from uniflow.callbacks.images import ImageGrid
from uniflow.callbacks.latents import LatentWriter
from uniflow.callbacks.monitor import Monitor
from uniflow.callbacks.probe import LinearProbe
from uniflow.callbacks.results import ResultsFile
from uniflow.callbacks.stability import Stability
from uniflow.callbacks.summary import PartsSummary

__all__ = [
    "EMA",
    "ImageGrid",
    "LatentWriter",
    "LinearProbe",
    "Monitor",
    "PartsSummary",
    "ResultsFile",
    "Stability",
    "TokenizerExport",
]
