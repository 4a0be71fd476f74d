"""Decoders: latents -> pixels."""

from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.patch_flow import PatchFlowDecoder
from uniflow.decoders.regression import RegressionDecoder

__all__ = ["PatchFlowDecoder", "PixelDecoder", "RegressionDecoder"]
