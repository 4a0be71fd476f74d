"""Finite scalar quantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.bottleneck.quantized import QuantizedBottleneck, import_library
from uniflow.core.numbers import PositiveInt
from uniflow.core.specs import EncoderSpec
from uniflow.layers.precision import full_precision

# The library counts indices in float32, which holds integers up to here.
MAX_CODEBOOK_SIZE = 2**24


class FSQBottleneck(QuantizedBottleneck):
    """Each channel is bounded by tanh and rounded to a few levels (FSQ, arXiv 2309.15505, section 3).

    There is no codebook to learn, and so no loss: an index numbers the combinations of levels. Gradients pass the
    rounding unchanged. Latents lie in [-1, 1], len(levels) channels for each codebook.

    Args:
        encoder: spec of the encoder in front.
        levels: levels of each channel, at least 3; their product is the codebook's size. The default is the paper's
            for 2^16 codes (its table of recommended levels): 64,000.
        num_codebooks: independent groups of such channels.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: if a number is below 1, a channel has fewer than 3 levels, or there are more than 2^24 codes.
        ImportError: without vector-quantize-pytorch.
    """

    # Half of the bound, where tanh is nearly straight.
    start_scale: ClassVar[float] = 0.5

    def __init__(
        self,
        encoder: EncoderSpec,
        levels: Sequence[PositiveInt] = (8, 8, 8, 5, 5, 5),
        num_codebooks: PositiveInt = 1,
        merge: PositiveInt = 1,
        **reads: Any,
    ) -> None:
        size = math.prod(levels)
        if not levels or min(levels) < 3 or size > MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"FSQBottleneck.levels must be at least 3 each, with a product of at most 2^24, got {list(levels)}; "
                "num_codebooks makes room for more codes"
            )
        super().__init__(encoder, len(levels) * num_codebooks, size, num_codebooks, merge, **reads)
        self.record_defaults(ProjectedBottleneck)
        self.levels = tuple(levels)
        # Without a table of all codes: they are computed where they are needed.
        self.fsq = import_library("FSQBottleneck").FSQ(list(levels), return_indices=False)

    def quantize(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self._join(self.fsq.quantize(self._split(tokens))), {}

    def nearest(self, tokens: Tensor) -> Tensor:
        return self.fsq.codes_to_indices(self.fsq.quantize(self._split(tokens))).long()

    def lookup(self, indices: Tensor) -> Tensor:
        codes = self.fsq.indices_to_codes(indices.flatten())
        return self._join(codes.view(*indices.shape, -1))

    def to_indices(self, latents: Tensor) -> Tensor:
        """Each channel's level, rounded on its own, numbered as the library does: the first channel turns fastest."""
        codes = self._split(full_precision(latents).permute(0, 2, 3, 1))
        levels = torch.tensor(self.levels, device=codes.device)
        half = levels // 2
        chosen = (codes * half + half).round().long().clamp_min(0).minimum(levels - 1)
        places = [math.prod(self.levels[:number]) for number in range(len(self.levels))]
        return (chosen * torch.tensor(places, device=codes.device)).sum(dim=-1)

    def _split(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b h w (k c) -> b h w k c", k=self.num_codebooks)

    def _join(self, codes: Tensor) -> Tensor:
        return rearrange(codes, "b h w k c -> b h w (k c)")
