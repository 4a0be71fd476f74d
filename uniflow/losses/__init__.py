"""Losses on decoded images."""

from uniflow.losses.pixel import Adversarial, Perceptual, PixelLoss

__all__ = ["Adversarial", "Perceptual", "PixelLoss"]
