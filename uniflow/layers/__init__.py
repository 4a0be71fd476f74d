"""Layers that several rooms share."""

from uniflow.layers.exact import ExactLinear

__all__ = ["ExactLinear"]
