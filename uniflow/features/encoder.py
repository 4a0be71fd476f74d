"""Features of an encoder: a teacher, or any pretrained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from uniflow.bottleneck.layers import Layers, layer_indices
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.encoders.base import VisionEncoder
from uniflow.features.base import FeatureSource


class EncoderSource(FeatureSource):
    """Hidden states of chosen blocks of an encoder.

    Args:
        encoder: makes the encoder.
        layers: "last", "all", a number K for the last K blocks, or a list of blocks (0 = first, -1 = last).

    Raises:
        ValueError: if there is no such block.
    """

    def __init__(self, encoder: Callable[[], VisionEncoder], layers: Layers = "last") -> None:
        super().__init__()
        self.encoder = encoder()
        spec = self.encoder.spec
        self.layers = block_indices(layers, spec.num_layers)
        self.spec = FeatureSpec(
            spec.embed_dim, spec.patch_size, len(self.layers), spec.num_prefix_tokens, spec.image_size
        )

    def forward(self, images: Tensor) -> EncoderOutput:
        return select_layers(self.encoder(images), self.layers)


def block_indices(layers: Layers, depth: int) -> tuple[int, ...]:
    """Indices from 0 of the blocks that `layers` stands for, see `EncoderSource`.

    Raises:
        ValueError: if there is no such block; embeddings are not one.
    """
    indices = layer_indices(layers, depth)
    if any(index >= depth for index in indices):
        raise ValueError(f"layers: heads read blocks 0 to {depth - 1}, not the embeddings")
    return tuple(indices)


def select_layers(output: EncoderOutput, layers: tuple[int, ...]) -> EncoderOutput:
    """The output with the hidden states and prefix tokens of these blocks only."""
    return dataclasses.replace(
        output,
        hidden_states=tuple(output.hidden_states[layer] for layer in layers),
        prefix_tokens=tuple(output.prefix_tokens[layer] for layer in layers),
    )
