"""From image features to a language model's input: the image tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.numbers import CheckedNumbers, PositiveInt
from uniflow.core.specs import EncoderOutput, FeatureSpec


class Projector(CheckedNumbers, nn.Module):
    """A two-layer perceptron on the patch tokens (LLaVA-1.5, arXiv 2310.03744); prefix tokens are not used.

    Several feature maps are joined channel by channel. With `merge`, m x m neighbouring tokens become one, their
    channels side by side (the pixel shuffle of InternVL, arXiv 2404.16821): m * m times fewer image tokens. A grid
    that m does not divide repeats its last row and column.

    Args:
        spec: of the features.
        width: of the language model's embeddings.
        merge: side m of the square of tokens that become one.
        norm: layer norm on what comes in, as InternVL has it and LLaVA not: features of all sources, latents too, then
            have one scale.
    """

    def __init__(self, spec: FeatureSpec, width: PositiveInt, merge: PositiveInt = 1, norm: bool = True) -> None:
        super().__init__()
        self.merge, self.norm, self.width = merge, norm, width
        channels = spec.embed_dim * spec.num_layers * merge * merge
        self.layers = nn.Sequential(
            nn.LayerNorm(channels) if norm else nn.Identity(),
            nn.Linear(channels, width),
            nn.GELU(),
            nn.Linear(width, width),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments besides the spec and the width."""
        return {"merge": self.merge, "norm": self.norm}

    def forward(self, features: EncoderOutput) -> Tensor:
        """Image tokens (B, n, width), row by row; n = ceil(h / m) ceil(w / m) for a grid of h x w patches."""
        maps = torch.cat([features.feature_map(layer) for layer in range(len(features.hidden_states))], dim=1)
        side, (rows, columns) = self.merge, features.grid
        if rows % side or columns % side:
            maps = F.pad(maps, (0, -columns % side, 0, -rows % side), mode="replicate")
        return self.layers(F.pixel_unshuffle(maps, side).flatten(2).transpose(1, 2))
