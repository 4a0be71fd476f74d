"""Sources of features: images -> what heads read, whatever the network behind it."""

from uniflow.features.base import FeatureSource
from uniflow.features.blank import BlankSource
from uniflow.features.encoder import EncoderSource
from uniflow.features.state_cache import StateCache, StatesNeeded
from uniflow.features.tokenizer import LatentSource, TokenizerSource

__all__ = [
    "BlankSource",
    "EncoderSource",
    "FeatureSource",
    "LatentSource",
    "StateCache",
    "StatesNeeded",
    "TokenizerSource",
]
