"""Bottlenecks: hidden states -> latents."""

from uniflow.bottleneck.base import Bottleneck
from uniflow.bottleneck.fsq import FSQBottleneck
from uniflow.bottleneck.kl import KLBottleneck
from uniflow.bottleneck.layers import LayerFusion
from uniflow.bottleneck.mlp import MLPBottleneck
from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.bottleneck.quantized import QuantizedBottleneck
from uniflow.bottleneck.vq import MultiVQBottleneck, VQBottleneck

__all__ = [
    "Bottleneck",
    "FSQBottleneck",
    "KLBottleneck",
    "LayerFusion",
    "MLPBottleneck",
    "MultiVQBottleneck",
    "ProjectedBottleneck",
    "QuantizedBottleneck",
    "VQBottleneck",
]
