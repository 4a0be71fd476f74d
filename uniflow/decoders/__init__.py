"""Decoders: latents -> pixels; and losses on the decoded images."""

from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.conv import ConvDecoder
from uniflow.decoders.patch_flow import PatchFlowDecoder
from uniflow.decoders.regression import RegressionDecoder
from uniflow.decoders.vit import ViTDecoder
from uniflow.losses.pixel import Adversarial, Perceptual, PixelLoss

__all__ = [
    "Adversarial",
    "ConvDecoder",
    "PatchFlowDecoder",
    "Perceptual",
    "PixelDecoder",
    "PixelLoss",
    "RegressionDecoder",
    "ViTDecoder",
]
