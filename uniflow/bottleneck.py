"""The last hidden state -> latents."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from uniflow.init import preserve_variance_
from uniflow.part import Part
from uniflow.specs import EncoderSpec, LatentSpec


class Bottleneck(Part):
    """Base class of bottlenecks. A subclass takes the `EncoderSpec` first and sets `spec` in its constructor."""

    spec: LatentSpec

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compress the last feature map.

        Args:
            features: patch tokens of the last block as an image, (B, D, h, w).

        Returns:
            The latents (B, C, h', w'), and auxiliary losses by name (scalars that are added to the training loss).
        """


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
