"""The paper's bottleneck."""

from __future__ import annotations

from torch import Tensor, nn

from uniflow.bottleneck.base import Bottleneck
from uniflow.init import preserve_variance_
from uniflow.specs import EncoderSpec, LatentSpec


class MLPBottleneck(Bottleneck):
    """The paper's projection: Linear, GELU, Linear on each patch token (arXiv 2510.10575, section 3).

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
    """

    def __init__(self, encoder: EncoderSpec, channels: int = 64) -> None:
        super().__init__()
        self.spec = LatentSpec(channels=channels, patch_size=encoder.patch_size)
        self.fc1 = nn.Linear(encoder.embed_dim, encoder.embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(encoder.embed_dim, channels)
        preserve_variance_(self.fc1, self.fc2)

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = features.permute(0, 2, 3, 1)
        return self.fc2(self.act(self.fc1(tokens))).permute(0, 3, 1, 2), {}
