"""What the bottlenecks of this package share: a projection of each token, or of each square of merged tokens."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uniflow.bottleneck.base import Bottleneck
from uniflow.init import preserve_variance_
from uniflow.specs import EncoderSpec, LatentSpec


class ProjectedBottleneck(Bottleneck):
    """Base class of bottlenecks that begin with Linear, GELU, Linear on each token.

    With `merge` m > 1 every square of m x m neighbouring tokens becomes one first, its channels side by side (space to
    depth), and a latent stands for m times the encoder's patch size: a patch of 14 pixels gives latents of 28.

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        merge: side m of the merged squares, in tokens; 1 merges nothing.
        outputs: values that the projection gives for one latent; None is `channels`.
        normalize: bring each token to mean 0 and variance 1 first (a layer norm without parameters).

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        channels: int,
        merge: int = 1,
        *,
        outputs: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1 or merge < 1:
            raise ValueError(
                f"{type(self).__name__} needs at least 1 channel and merge >= 1, got {channels} channels, merge {merge}"
            )
        self.spec = LatentSpec(channels=channels, patch_size=encoder.patch_size * merge)
        self.merge = merge
        self.normalize = normalize
        self.fc1 = nn.Linear(encoder.embed_dim * merge**2, encoder.embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(encoder.embed_dim, outputs or channels)
        preserve_variance_(self.fc1, self.fc2)

    def project(self, features: Tensor) -> Tensor:
        """Feature map (B, D, h, w) -> (B, h / merge, w / merge, outputs), channels last.

        Raises:
            ValueError: if `merge` does not divide the grid.
        """
        m = self.merge
        height, width = features.shape[-2:]
        if height % m or width % m:
            raise ValueError(
                f"{m} x {m} tokens cannot be merged on a grid of {height} x {width}: "
                f"image sides must be multiples of {self.spec.patch_size} pixels"
            )
        tokens = rearrange(features, "b d (h m) (w n) -> b h w (m n d)", m=m, n=m)
        if self.normalize:
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return self.fc2(self.act(self.fc1(tokens)))
