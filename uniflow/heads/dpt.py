"""The dense prediction transformer as a head for metric depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from uniflow.core.numbers import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.depth import MetricDepthHead
from uniflow.heads.four_maps import four_maps, transformers_module


class DPTDepth(MetricDepthHead):
    """The dense prediction transformer's neck and head (DPT, arXiv 2103.13413) of transformers, on 4 feature maps.

    A source of one map gives it four times; give 4 layers for DPT's own setting. Depth is `max_depth` times a sigmoid,
    as in Depth Anything V2's metric models: a ReLU as in DPT's own head may start without a gradient.

    Args:
        spec: of the features, with 1 or 4 layers.
        width: channels of the fusion blocks.
        neck: channels of the four maps, coarsest last.
        readout: what becomes of the class token: "ignore", "add", or "project" it to each patch token.
        min_depth: smallest depth that is predicted, in metres.
        max_depth: largest one.
        invariance: see `MetricDepthHead`.
        gradient_weight: see `MetricDepthHead`.
        weight: factor on the loss.

    Raises:
        ImportError: without transformers.
        ValueError: if the range is empty, there are not 1 or 4 layers, or no class token to read.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        width: PositiveInt = 256,
        neck: Sequence[PositiveInt] = (96, 192, 384, 768),
        readout: Literal["ignore", "add", "project"] = "ignore",
        min_depth: PositiveFloat = 0.001,
        max_depth: PositiveFloat = 10.0,
        invariance: UnitFloat = 0.85,
        gradient_weight: NonNegativeFloat = 0.5,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, min_depth, max_depth, invariance, gradient_weight, weight)
        four_maps("DPTDepth", range(spec.num_layers))
        if len(neck) != 4 or width < 2:
            raise ValueError(f"DPTDepth needs 4 numbers in neck and a width of 2 or more, got {list(neck)} and {width}")
        if readout != "ignore" and not spec.num_prefix_tokens:
            raise ValueError(f"DPTDepth.readout: these features have no class token to {readout}; set it to ignore")
        dpt = transformers_module("DPTDepth", "dpt")
        config = dpt.DPTConfig(
            hidden_size=spec.embed_dim, neck_hidden_sizes=list(neck), fusion_hidden_size=width, readout_type=readout
        )
        self.neck = dpt.modeling_dpt.DPTNeck(config)
        self.head = dpt.modeling_dpt.DPTDepthEstimationHead(config)
        self.head.head[-1] = nn.Sigmoid()

    def values(self, features: EncoderOutput) -> Tensor:
        prefixed = [
            torch.cat([_first(prefix, hidden), hidden], dim=1)
            for prefix, hidden in zip(features.prefix_tokens, features.hidden_states, strict=True)
        ]
        fused = self.neck(four_maps("DPTDepth", prefixed), *features.grid)
        return (self.head(fused) * self.max_depth).clamp_min(self.min_depth).unsqueeze(1)


def _first(prefix: Tensor, hidden: Tensor) -> Tensor:
    """The class token (B, 1, D); without one what stands in its place, which `readout: ignore` does not read."""
    return prefix[:, :1] if prefix.shape[1] else hidden[:, :1]
