"""Base class of feature sources."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from uniflow.core.numbers import CheckedNumbers
from uniflow.core.specs import EncoderOutput, FeatureSpec


class FeatureSource(CheckedNumbers, nn.Module, ABC):
    """Images -> features. The same heads, losses and metrics then serve an encoder, a tokenizer and its latents.

    Attributes:
        spec: of the features.
    """

    spec: FeatureSpec

    @abstractmethod
    def forward(self, images: Tensor) -> EncoderOutput:
        """Features of `images`, RGB (B, 3, H, W), uint8 or float in [0, 1].

        Returns:
            `spec.num_layers` feature maps as `hidden_states`, each (B, N, embed_dim) with the patches row by row, and
            as many `prefix_tokens`, each (B, num_prefix_tokens, embed_dim).
        """
