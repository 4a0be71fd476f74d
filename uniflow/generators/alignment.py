"""Training a generator's hidden tokens to know what the tokenizer's whole latents know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.core.numbers import NonNegativeFloat, PositiveInt
from uniflow.core.part import Part
from uniflow.generators.base import LatentGenerator
from uniflow.layers.grid import to_tokens
from uniflow.layers.precision import full_precision, without_autocast


class FeatureAlignment(Part):
    """A head that predicts an encoder's features from the tokens of a block (REPA, arXiv 2410.06940).

    The features are the tokenizer's whole latents of the clean image, which its student encoder made: of a generator
    in `PictureSpace` they hold what it does not model itself. The head is for training only and not part of the
    generator.

    Args:
        channels: of the features of one token.
        width: channels of the network's tokens.
        weight: of the loss.
        depth: the block whose tokens are read, the first is 1.
        hidden: channels of the head's two hidden layers.
    """

    def __init__(
        self,
        channels: PositiveInt,
        width: PositiveInt,
        weight: NonNegativeFloat = 0.5,
        depth: PositiveInt = 2,
        hidden: PositiveInt = 512,
    ) -> None:
        super().__init__()
        self.weight, self.depth = weight, depth
        self.head = nn.Sequential(
            *(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, channels))
        )
        self._tokens: Tensor | None = None

    def attach(self, network: LatentGenerator) -> None:
        """Read the network's tokens from now on.

        Raises:
            ValueError: if it has no such block.
        """
        blocks = getattr(network, "blocks", ())
        if self.depth > len(blocks):
            raise ValueError(
                f"FeatureAlignment: depth must be at most {len(blocks)}, the blocks of {type(network).__name__}, "
                f"got {self.depth}"
            )
        blocks[self.depth - 1].register_forward_hook(self._keep)

    def loss(self, features: Tensor) -> Tensor:
        """`weight` times the mean of 1 - cosine of the predicted and the real features, of the network's last pass.

        Args:
            features: (B, C, h, w), a token each.
        """
        assert self._tokens is not None
        predicted, self._tokens = self.head(self._tokens), None
        with without_autocast(features.device):
            cosines = F.cosine_similarity(full_precision(predicted), full_precision(to_tokens(features)), dim=-1)
            return self.weight * (1 - cosines).mean()

    def _keep(self, block: nn.Module, given: tuple[Tensor, ...], tokens: Tensor) -> None:
        if torch.is_grad_enabled():
            self._tokens = tokens
