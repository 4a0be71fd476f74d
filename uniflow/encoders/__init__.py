"""Encoders: pixels -> the hidden state of every block."""

from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.encoders.scene_vit import SceneViT
from uniflow.encoders.timm_encoder import TimmEncoder

__all__ = ["EncoderOutput", "SceneViT", "TimmEncoder", "VisionEncoder"]
