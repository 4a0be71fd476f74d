"""Which hidden states a bottleneck reads, and how they become one feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.layers.precision import full_dtype, full_precision

Layers = Literal["last", "all"] | PositiveInt | list[int | Literal["embeddings"]]
Fuse = Literal["sum", "concat", "learned"]
Normalize = Literal["layer", "token"]


class LayerFusion(nn.Module):
    """Hidden states of chosen layers, each normalised, as one feature map.

    The last layer alone has lost much of the image's detail, which earlier layers hold: RAEv2 (arXiv 2605.18324) sums
    the last K layers. "last" is the paper's reading (arXiv 2510.10575): that one layer, not normalised.

    Args:
        encoder: spec of the encoder in front.
        layers: "last", "all", a number K for the last K layers, or a list of indices (0 = first, -1 = last), in which
            "embeddings" names the tokens before the first block: of most ViTs a linear map of the pixels.
        fuse: "concat", the layers' channels side by side; "sum", their sum over the square root of their number; or
            "learned", that sum with a trained weight for each layer, all 1 at first.
        normalize: "layer" takes a mean from each channel and divides the layer by one number, which are measured
            before training (`calibrate`; 0 and 1 until then); "token" brings every token to mean 0 and variance 1,
            which loses its contrast.

    Raises:
        ValueError: if there is no such layer, one is named twice, or the choice is empty.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, encoder: EncoderSpec, layers: Layers = "last", fuse: Fuse = "concat", normalize: Normalize = "layer"
    ) -> None:
        super().__init__()
        if fuse not in ("sum", "concat", "learned"):
            raise ValueError(f"fuse must be sum, concat or learned, got {fuse!r}")
        if normalize not in ("layer", "token"):
            raise ValueError(f"normalize must be layer or token, got {normalize!r}")
        self.indices = layer_indices(layers, encoder.num_layers)
        self.fuse = fuse
        self.normalize: Normalize | None = None if layers == "last" else normalize
        count = len(self.indices)
        self.channels = encoder.embed_dim * (count if fuse == "concat" else 1)
        self.weights = nn.Parameter(torch.ones(count)) if fuse == "learned" else None
        if self.normalize == "layer":
            self.register_buffer("mean", torch.zeros(count, encoder.embed_dim))
            self.register_buffer("scale", torch.ones(count))

    def calibrate(self, means: Tensor, stds: Tensor) -> None:
        """Take what hidden states look like on training images.

        Args:
            means: of each channel of all L layers, and of the embeddings if there are any, (L + 1, D).
            stds: standard deviation of the values of each around those means, (L + 1,).
        """
        chosen = list(self.indices)
        self.mean.copy_(means[chosen])
        self.scale.copy_(1 / stds[chosen].clamp_min(1e-6))

    def forward(self, output: EncoderOutput) -> Tensor:
        """The feature map (B, h, w, channels), channels last."""
        states = [self._normalized(self._state(output, index), position) for position, index in enumerate(self.indices)]
        if self.weights is not None:
            states = [state * weight for state, weight in zip(states, self.weights, strict=True)]
        if len(states) == 1:
            fused = states[0]
        elif self.fuse == "concat":
            fused = torch.cat(states, dim=-1)
        else:
            fused = torch.stack(states).sum(dim=0) / len(states) ** 0.5
        return fused.unflatten(1, output.grid)

    def _state(self, output: EncoderOutput, index: int) -> Tensor:
        if index < len(output.hidden_states):
            return output.hidden_states[index]
        if output.embeddings is None:
            raise ValueError("layers: this encoder gives no embeddings; name its blocks by number")
        return output.embeddings

    def _normalized(self, tokens: Tensor, position: int) -> Tensor:
        if self.normalize is None:
            return tokens
        if self.normalize == "token":
            return normalize_tokens(tokens)
        dtype = full_dtype(tokens.dtype)
        return ((tokens.to(dtype) - self.mean[position]) * self.scale[position]).to(tokens.dtype)


def normalize_tokens(tokens: Tensor) -> Tensor:
    """A layer norm without parameters over the channels of tokens (..., D), computed in at least float32."""
    exact = full_precision(tokens)
    return F.layer_norm(exact, exact.shape[-1:]).to(tokens.dtype)


def last_features(output: EncoderOutput, rows: int) -> Tensor:
    """The normalised last hidden state at the places of the latents, (B, h' w', m^2 D) where m x m tokens make one.

    Args:
        output: of the encoder.
        rows: rows h' of the latents.
    """
    m = output.grid[0] // rows
    last = normalize_tokens(output.hidden_states[-1]).unflatten(1, output.grid)
    return rearrange(last, "b (h m) (w n) d -> b (h w) (m n d)", m=m, n=m)


def layer_indices(layers: Layers, depth: int) -> tuple[int, ...]:
    """The layers, 0 to depth - 1, that `layers` names in an encoder of `depth` layers; see `LayerFusion`.

    The embeddings are numbered `depth`.

    Raises:
        ValueError: if there is no such layer, one is named twice, or the choice is empty.
    """
    if layers == "last":
        return (depth - 1,)
    if layers == "all":
        return tuple(range(depth))
    if isinstance(layers, int) and not isinstance(layers, bool) and 1 <= layers <= depth:
        return tuple(range(depth - layers, depth))
    listed = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else []
    numbers = [i for i in listed if i != "embeddings"]
    if listed and all(isinstance(i, int) and not isinstance(i, bool) and -depth <= i < depth for i in numbers):
        indices = tuple(depth if i == "embeddings" else int(i) % depth for i in listed)
        if len(set(indices)) == len(indices):
            return indices
    raise ValueError(
        f"layers must be last, all, a number of last layers from 1 to {depth}, or a list of different indices from "
        f"{-depth} to {depth - 1} (0 is the first layer, -1 the last) or embeddings, got {layers!r}"
    )
