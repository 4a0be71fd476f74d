"""One vector for each image: class tokens and means of patch tokens, normalised without learned numbers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.specs import EncoderOutput, FeatureSpec

Pool = Literal["class", "mean", "class_and_mean"]


def available_pools(spec: FeatureSpec, pools: tuple[Pool, ...]) -> tuple[Pool, ...]:
    """The different ones of `pools` that these features allow: without prefix tokens only "mean" is left."""
    found: tuple[Pool, ...] = pools if spec.num_prefix_tokens else ("mean",)
    return tuple(dict.fromkeys(found))


def pooled_blocks(features: EncoderOutput, blocks: int, pool: Pool) -> Tensor:
    """The features of DINOv2's linear evaluation (arXiv 2304.07193), (B, K).

    Tokens are layer-normalised one by one, without scale and shift: sources give hidden states from before an
    encoder's final norm.

    Args:
        features: of a source with at least `blocks` layers.
        blocks: number of last blocks.
        pool: "class": their class tokens side by side; "class_and_mean": with the mean patch token of the last block
            behind them; "mean": the mean patch tokens of the blocks side by side.
    """
    if pool == "mean":
        return torch.cat([_normalized(state).mean(dim=1) for state in features.hidden_states[-blocks:]], dim=1)
    parts = [_normalized(tokens[:, 0]) for tokens in features.prefix_tokens[-blocks:]]
    if pool == "class_and_mean":
        parts.append(_normalized(features.hidden_states[-1]).mean(dim=1))
    return torch.cat(parts, dim=1)


def pooled_width(spec: FeatureSpec, blocks: int, pool: Pool) -> int:
    """Width K of `pooled_blocks`."""
    return spec.embed_dim * (blocks + (pool == "class_and_mean"))


def all_tokens(features: EncoderOutput) -> Tensor:
    """Prefix and patch tokens of the last block, layer-normalised as above, (B, P + N, D)."""
    return _normalized(torch.cat([features.prefix_tokens[-1], features.hidden_states[-1]], dim=1))


def _normalized(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])
