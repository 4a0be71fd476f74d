"""What the bottlenecks of this package share: a projection of each token, or of each square of merged tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from uniflow.bottleneck.base import Bottleneck
from uniflow.bottleneck.layers import Fuse, LayerFusion, Layers, Normalize, normalize_tokens
from uniflow.bottleneck.temporal import TemporalMerging
from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import EncoderOutput, EncoderSpec, LatentSpec
from uniflow.layers import ExactLinear
from uniflow.layers.init import preserve_variance_
from uniflow.layers.over_time import Memory


class ProjectedBottleneck(Bottleneck):
    """Base class of bottlenecks that begin with Linear, GELU, Linear on each token.

    With `merge` m > 1 every square of m x m neighbouring tokens becomes one first, its channels side by side (space to
    depth), and a latent stands for m times the encoder's patch size: a patch of 14 pixels gives latents of 28.

    Args:
        encoder: spec of the encoder in front.
        channels: channels of a latent.
        merge: side m of the merged squares, in tokens; 1 merges nothing.
        layers: hidden states to read: "last" (the paper's: the last layer, not normalised), "all", a number K for the
            last K, or a list of indices (0 = first, -1 = last), in which "embeddings" are the tokens before the first
            block. All but "last" are normalised.
        fuse: how several layers become one: "concat", "sum", or "learned", a sum with trained weights.
        normalize: how those layers are normalised, "layer" or "token"; see `LayerFusion`.
        shortcut: add a linear path beside the projection, whose own output starts at zero. `start: regression` of
            the task writes its solution there.
        temporal_merge: of clips: frames that become one latent; see `TemporalMerging`. 1 gives each frame its own.

    Raises:
        ValueError: if a number is below 1, or there is no such layer.
    """

    # Values that the projection gives for each channel of a latent.
    outputs_per_channel: ClassVar[int] = 1
    # Whether tokens of the paper's last layer are brought to mean 0 and variance 1 after merging.
    normalize_last: ClassVar[bool] = False

    def __init__(
        self,
        encoder: EncoderSpec,
        channels: PositiveInt,
        merge: PositiveInt = 1,
        layers: Layers = "last",
        fuse: Fuse = "concat",
        normalize: Normalize = "layer",
        shortcut: bool = False,
        temporal_merge: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec(channels=channels, patch_size=encoder.patch_size * merge)
        self.merge = merge
        self.fusion = LayerFusion(encoder, layers, fuse, normalize)
        inputs, outputs = self.fusion.channels * merge**2, channels * self.outputs_per_channel
        self.fc1 = nn.Linear(inputs, encoder.embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(encoder.embed_dim, outputs)
        preserve_variance_(self.fc1, self.fc2)
        self.shortcut: ExactLinear | None = None
        if shortcut:
            self.shortcut = ExactLinear(inputs, outputs)
            preserve_variance_(self.shortcut)
            nn.init.zeros_(self.fc2.weight)
        self.frames_per_latent = temporal_merge
        self.temporal: TemporalMerging | None = None
        if temporal_merge > 1:
            self.temporal = TemporalMerging(outputs, channels, encoder.embed_dim, temporal_merge)

    def over_time(self, frames: int, memory: Memory | None = None) -> AbstractContextManager[None]:
        return super().over_time(frames, memory) if self.temporal is None else self.temporal.over_time(frames, memory)

    def to_frames(self, latents: Tensor) -> Tensor:
        return latents if self.temporal is None else self.temporal.to_frames(latents)

    def tokens(self, output: EncoderOutput) -> Tensor:
        """What the projection reads: (B, h / merge, w / merge, inputs), channels last.

        Raises:
            ValueError: if `merge` does not divide the grid.
        """
        m = self.merge
        height, width = output.grid
        if height % m or width % m:
            raise ValueError(
                f"{m} x {m} tokens cannot be merged on a grid of {height} x {width}: "
                f"image sides must be multiples of {self.spec.patch_size} pixels"
            )
        tokens = rearrange(self.fusion(output), "b (h m) (w n) d -> b h w (m n d)", m=m, n=m)
        return normalize_tokens(tokens) if self.normalize_last and self.fusion.normalize is None else tokens

    @property
    def layers_read(self) -> tuple[int, ...]:
        return self.fusion.indices

    @property
    def needs_calibration(self) -> bool:
        return self.fusion.normalize == "layer"

    def calibrate(self, means: Tensor, stds: Tensor) -> None:
        self.fusion.calibrate(means, stds)

    def project(self, output: EncoderOutput) -> Tensor:
        """The projection of the encoder's output, (B, h / merge, w / merge, outputs), channels last; frames merged.

        Raises:
            ValueError: if `merge` does not divide the grid, or `temporal_merge` gets no whole clips.
        """
        tokens = self.tokens(output)
        projected = self.fc2(self.act(self.fc1(tokens)))
        projected = projected if self.shortcut is None else projected + self.shortcut(tokens)
        return projected if self.temporal is None else self.temporal.merge(projected)

    def linear_start(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        if self.shortcut is None:
            return super().linear_start(weight, bias)
        further = len(self.shortcut.bias) - len(bias)  # what a subclass predicts besides the latents
        return {
            "shortcut.weight": torch.cat([weight, weight.new_zeros(further, weight.shape[1])]),
            "shortcut.bias": torch.cat([bias, bias.new_zeros(further)]),
            "fc2.weight": weight.new_zeros(self.fc2.weight.shape),
            "fc2.bias": weight.new_zeros(self.fc2.bias.shape),
        }
