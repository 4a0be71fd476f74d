"""Bottlenecks: the last hidden state -> latents."""

from uniflow.bottleneck.base import Bottleneck
from uniflow.bottleneck.fsq import FSQBottleneck
from uniflow.bottleneck.kl import KLBottleneck
from uniflow.bottleneck.mlp import MLPBottleneck
from uniflow.bottleneck.quantized import QuantizedBottleneck
from uniflow.bottleneck.vq import MultiVQBottleneck, VQBottleneck

__all__ = [
    "Bottleneck",
    "FSQBottleneck",
    "KLBottleneck",
    "MLPBottleneck",
    "MultiVQBottleneck",
    "QuantizedBottleneck",
    "VQBottleneck",
]
