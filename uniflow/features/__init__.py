"""Sources of features: images -> what heads read, whatever the network behind it."""

from uniflow.features.base import FeatureSource
from uniflow.features.encoder import EncoderSource
from uniflow.features.tokenizer import LatentSource, TokenizerSource

__all__ = ["EncoderSource", "FeatureSource", "LatentSource", "TokenizerSource"]
