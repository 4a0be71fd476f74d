"""Bottlenecks: the last hidden state -> latents."""

from uniflow.bottleneck.base import Bottleneck
from uniflow.bottleneck.mlp import MLPBottleneck

__all__ = ["Bottleneck", "MLPBottleneck"]
