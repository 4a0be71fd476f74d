"""A tokenizer with the interfaces that other projects expect, without a dependency on them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from uniflow.layers.grid import to_tokens
from uniflow.tokenizer.model import Tokenizer


class PointDistribution:
    """The "distribution" of latents that are not random: each sample is the same.

    Args:
        latents: (B, C, h, w).
    """

    def __init__(self, latents: Tensor) -> None:
        self.mean = latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latents; nothing is drawn from `generator`."""
        return self.mean

    def mode(self) -> Tensor:
        """The latents."""
        return self.mean


@dataclass
class EncoderResult:
    """What `DiffusersAutoencoder.encode` gives.

    Attributes:
        latent_dist: the latents, as a distribution.
    """

    latent_dist: PointDistribution


@dataclass
class DecoderResult:
    """What `DiffusersAutoencoder.decode` gives.

    Attributes:
        sample: images (B, 3, H, W) in [-1, 1].
    """

    sample: Tensor


class DiffusersAutoencoder(nn.Module):
    """A tokenizer with the methods of diffusers' `AutoencoderKL`, for code that trains generators in its latent space.

    Images are float (B, 3, H, W) in [-1, 1]. Latents are normalised channel by channel, so that the one factor of
    such code, `config.scaling_factor`, is 1.

    Args:
        tokenizer: the tokenizer.
        normalize: whether latents are normalised by the tokenizer's statistics.
        steps: sampler steps of a flow decoder; None leaves them to the decoder.

    Raises:
        ValueError: if latents are to be normalised and the tokenizer has no statistics.
    """

    def __init__(self, tokenizer: Tokenizer, normalize: bool = True, steps: int | None = None) -> None:
        super().__init__()
        if normalize and tokenizer.latent_statistics is None:
            raise ValueError(
                "this tokenizer has no latent statistics to normalise with: measure them with `uniflow stats`, "
                "or set normalize to False"
            )
        self.tokenizer = tokenizer
        self.normalize = normalize
        self.steps = steps
        self.config = SimpleNamespace(
            scaling_factor=1.0,
            shift_factor=0.0,
            latent_channels=tokenizer.latent_channels,
            in_channels=3,
            out_channels=3,
        )

    def encode(self, images: Tensor) -> EncoderResult:
        """Images (B, 3, H, W) in [-1, 1] -> `.latent_dist.sample()` or `.mode()`, latents (B, C, h, w)."""
        return EncoderResult(PointDistribution(self.tokenizer.encode(images * 0.5 + 0.5, normalize=self.normalize)))

    def decode(self, latents: Tensor, generator: torch.Generator | None = None) -> DecoderResult:
        """Latents (B, C, h, w) -> `.sample`, images (B, 3, H, W) in [-1, 1]."""
        images = self.tokenizer.decode(latents, steps=self.steps, generator=generator, normalized=self.normalize)
        return DecoderResult(images * 2 - 1)


class VisionTower(nn.Module):
    """A tokenizer's encoder as the vision tower of a multimodal language model, in the manner of LLaVA's.

    Args:
        tokenizer: the tokenizer.
        layer: whose hidden states are given, 0 = first block, -1 = last; LLaVA takes the last but one.

    Raises:
        ValueError: if there is no such block.
    """

    def __init__(self, tokenizer: Tokenizer, layer: int = -2) -> None:
        super().__init__()
        depth = tokenizer.encoder.spec.num_layers
        if not -depth <= layer < depth:
            raise ValueError(f"the encoder has blocks 0 to {depth - 1}, there is no block {layer}")
        self.tokenizer = tokenizer
        self.layer = layer

    @property
    def hidden_size(self) -> int:
        """Channels D of a token."""
        return self.tokenizer.encoder.spec.embed_dim

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the encoder was pretrained on; others are welcome."""
        return self.tokenizer.encoder.spec.image_size

    @property
    def num_patches(self) -> int:
        """Tokens N of an image of `image_size`, padded if needed."""
        patch_size = self.tokenizer.encoder.spec.patch_size
        multiple = max(patch_size, self.tokenizer.patch_size)
        return (-(-self.image_size // multiple) * multiple // patch_size) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), uint8 or float in [0, 1] -> patch tokens (B, N, D), row by row."""
        [features] = self.tokenizer.features(images, layers=[self.layer])
        return to_tokens(features)
