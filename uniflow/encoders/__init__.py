"""Encoders: pixels -> the hidden state of every block."""

from uniflow.encoders.base import EncoderOutput, VisionEncoder

__all__ = ["EncoderOutput", "VisionEncoder"]
