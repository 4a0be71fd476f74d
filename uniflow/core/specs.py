"""What one part tells the next about its output, and what an encoder passes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureSpec:
    """What a source of features gives to heads.

    Attributes:
        embed_dim: channels D of every feature map.
        patch_size: side in pixels of the image area that one token stands for.
        num_layers: number of feature maps, each of one layer.
        num_prefix_tokens: class and register tokens in front of the patch tokens.
        image_size: side in pixels of the images the encoder was pretrained on.
    """

    embed_dim: int
    patch_size: int
    num_layers: int
    num_prefix_tokens: int
    image_size: int


@dataclass(frozen=True)
class EncoderSpec(FeatureSpec):
    """What an encoder gives to whatever follows it: a `FeatureSpec` of all its transformer blocks, and its pixel range.

    Attributes:
        mean: per-channel mean (R, G, B) of the [0, 1] pixels that the encoder subtracts.
        std: per-channel standard deviation (R, G, B) that it divides by.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class LatentSpec:
    """What a bottleneck outputs: latents (B, channels, H / patch_size, W / patch_size).

    Attributes:
        channels: channels C of a latent.
        patch_size: side in pixels of the image area that one latent stands for.
        codebook_size: entries of each codebook, for generators of discrete latents; None if the latents are not codes.
        num_codebooks: codebooks K, so indices of one latent; None if the latents are not codes.
    """

    channels: int
    patch_size: int
    # Whoever reads latents, as a decoder does, does not care: specs with and without them are equal.
    codebook_size: int | None = field(default=None, compare=False, repr=False)
    num_codebooks: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ConditionSpec:
    """What a condition tells a generator.

    Attributes:
        width: channels of the vector of each sample.
        token_width: channels of its tokens; None if it gives no tokens.
    """

    width: int
    token_width: int | None = None


@dataclass
class EncoderOutput:
    """Hidden states of one batch.

    Attributes:
        hidden_states: for each of the L blocks its output on the patch tokens, (B, N, D), row-major over the grid.
        prefix_tokens: for each block its output on class and register tokens, (B, P, D); P can be 0.
        grid: rows h and columns w of the patch grid; N = h * w.
        embeddings: patch tokens before the first block, (B, N, D), which most ViTs compute linearly from the pixels;
            without position embeddings, or with them if a library gives only those. None if an encoder gives none.
    """

    hidden_states: tuple[Tensor, ...]
    prefix_tokens: tuple[Tensor, ...]
    grid: tuple[int, int]
    embeddings: Tensor | None = None

    def feature_map(self, layer: int = -1) -> Tensor:
        """The patch tokens of one block as an image, (B, D, h, w)."""
        hidden = self.hidden_states[layer]
        return hidden.transpose(1, 2).reshape(hidden.shape[0], hidden.shape[2], *self.grid)


# So that FSDP2 finds the tensors in it, whose gradients tell when the encoder's parameters are needed again.
torch.export.register_dataclass(EncoderOutput)
