"""What one part tells the next about its output."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder gives to whatever follows it.

    Attributes:
        embed_dim: channels D of every hidden state.
        patch_size: side of a patch in pixels.
        num_layers: number L of transformer blocks, so of hidden states.
        num_prefix_tokens: class and register tokens in front of the patch tokens.
        image_size: side in pixels of the images the encoder was pretrained on.
        mean: per-channel mean (R, G, B) of the [0, 1] pixels that the encoder subtracts.
        std: per-channel standard deviation (R, G, B) that it divides by.
    """

    embed_dim: int
    patch_size: int
    num_layers: int
    num_prefix_tokens: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class LatentSpec:
    """What a bottleneck gives to a decoder: latents (B, channels, H / patch_size, W / patch_size).

    Attributes:
        channels: channels C of a latent.
        patch_size: side in pixels of the image area that one latent stands for.
    """

    channels: int
    patch_size: int
