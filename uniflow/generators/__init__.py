"""Generators of latents, and the model that makes images with one."""

from uniflow.generators.alignment import FeatureAlignment
from uniflow.generators.base import LatentGenerator
from uniflow.generators.dit import DiT
from uniflow.generators.mar import MAR
from uniflow.generators.model import Generator
from uniflow.generators.next_token import NextToken
from uniflow.generators.space import LatentSpace, PictureSpace

__all__ = ["MAR", "DiT", "FeatureAlignment", "Generator", "LatentGenerator", "LatentSpace", "NextToken", "PictureSpace"]
