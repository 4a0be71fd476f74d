"""Features of a trained tokenizer: its student encoder, and its latents."""

from __future__ import annotations

from torch import Tensor

from uniflow.bottleneck.layers import Layers
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.features.base import FeatureSource
from uniflow.features.encoder import EncoderSource
from uniflow.tokenizer import Tokenizer


class TokenizerSource(EncoderSource):
    """Hidden states of chosen blocks of a tokenizer's encoder, the student.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or its name on the hub.
        layers: "last", "all", a number K for the last K blocks, or a list of blocks (0 = first, -1 = last).

    Raises:
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if there is no such block.
    """

    def __init__(self, tokenizer: str, layers: Layers = "last") -> None:
        super().__init__(lambda: Tokenizer.from_pretrained(tokenizer).encoder, layers)


class LatentSource(FeatureSource):
    """The latents of a tokenizer as one feature map, each latent a token; there are no prefix tokens.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or its name on the hub.
        normalize: whether to bring each channel to mean 0 and variance 1 by the tokenizer's latent statistics.

    Raises:
        FileNotFoundError: if there is no such tokenizer.
        ValueError: if it has no statistics to normalise with.
    """

    def __init__(self, tokenizer: str, normalize: bool = False) -> None:
        super().__init__()
        self.tokenizer = Tokenizer.from_pretrained(tokenizer)
        if normalize and self.tokenizer.latent_statistics is None:
            raise ValueError(f"LatentSource: {tokenizer} has no latent statistics: measure them with `uniflow stats`")
        self.normalize = normalize
        self.spec = FeatureSpec(
            embed_dim=self.tokenizer.latent_channels,
            patch_size=self.tokenizer.patch_size,
            num_layers=1,
            num_prefix_tokens=0,
            image_size=self.tokenizer.encoder.spec.image_size,
        )

    def forward(self, images: Tensor) -> EncoderOutput:
        latents = self.tokenizer.encode(images, normalize=self.normalize)
        tokens = latents.flatten(2).transpose(1, 2)
        return EncoderOutput((tokens,), (tokens[:, :0],), (latents.shape[-2], latents.shape[-1]))
