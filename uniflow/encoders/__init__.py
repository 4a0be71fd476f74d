"""Encoders: pixels -> the hidden state of every block."""

from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.encoders.embedded_vit import EmbeddedViT
from uniflow.encoders.families import CLIP, DINOv2, DINOv3, InternViT, SigLIP
from uniflow.encoders.scene_vit import SceneViT
from uniflow.encoders.timm_encoder import TimmEncoder
from uniflow.encoders.transformers_encoder import TransformersEncoder

__all__ = [
    "CLIP",
    "DINOv2",
    "DINOv3",
    "EmbeddedViT",
    "EncoderOutput",
    "InternViT",
    "SceneViT",
    "SigLIP",
    "TimmEncoder",
    "TransformersEncoder",
    "VisionEncoder",
]
