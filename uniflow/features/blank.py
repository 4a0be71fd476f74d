"""Features that say nothing about the image: what a head scores on them is the trivial baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.features.base import FeatureSource


class BlankSource(FeatureSource):
    """Ones for every patch of every image.

    A classifier on them learns the most frequent class, a depth head the mean depth, a language model answers from
    the question alone.

    Args:
        patch_size: side of a patch in pixels.
        embed_dim: width D of a token.
        num_layers: number of feature maps.
    """

    def __init__(self, patch_size: PositiveInt = 8, embed_dim: PositiveInt = 64, num_layers: PositiveInt = 1) -> None:
        super().__init__()
        self.spec = FeatureSpec(embed_dim, patch_size, num_layers, num_prefix_tokens=0, image_size=8 * patch_size)

    def forward(self, images: Tensor) -> EncoderOutput:
        grid = (images.shape[-2] // self.spec.patch_size, images.shape[-1] // self.spec.patch_size)
        tokens = torch.ones(len(images), grid[0] * grid[1], self.spec.embed_dim, device=images.device)
        layers = self.spec.num_layers
        return EncoderOutput((tokens,) * layers, (tokens[:, :0],) * layers, grid)
