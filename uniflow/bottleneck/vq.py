"""Vector quantisation with one codebook, and with several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniflow.bottleneck.codebook import Codebook
from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.bottleneck.quantized import QuantizedBottleneck
from uniflow.core.numbers import Int2, NonNegativeFloat, PositiveInt, UnitFloatBelow1
from uniflow.core.specs import EncoderSpec


class VQBottleneck(QuantizedBottleneck):
    """Each latent is the nearest entry of one learned codebook (VQ-VAE, arXiv 1711.00937).

    Gradients pass straight through. The entries are moving averages of the latents that chose them; those that hardly
    any latent chooses are replaced by latents of the batch, and the start is k-means (both as in SoundStream, arXiv
    2107.03312, section III-C). The losses are "commitment" and, of a learnable codebook, "codebook": see `Codebook`.

    Args:
        encoder: spec of the encoder in front.
        codebook_size: entries of the codebook.
        codebook_dim: channels of an entry, so of a latent.
        commitment_weight: factor on the commitment loss (beta of the paper).
        decay: of the moving averages.
        learnable: train the entries by gradients instead of moving averages.
        cosine: latents and entries of length 1, compared by their cosine (arXiv 2110.04627, section 3.2).
        kmeans_init: begin with k-means of the first training batch, instead of uniformly drawn entries.
        dead_code_threshold: replace an entry when the moving average of its uses in a step, over all processes, is
            below this; 0 replaces none. Even use would give each entry (tokens in a step) / codebook_size.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: for numbers out of range, and for a learnable codebook with cosine.
        ImportError: without vector-quantize-pytorch.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        codebook_size: Int2 = 4096,
        codebook_dim: PositiveInt = 32,
        commitment_weight: NonNegativeFloat = 0.25,
        decay: UnitFloatBelow1 = 0.99,
        learnable: bool = False,
        cosine: bool = False,
        kmeans_init: bool = True,
        dead_code_threshold: NonNegativeFloat = 0.05,
        merge: PositiveInt = 1,
        **reads: Any,
    ) -> None:
        super().__init__(encoder, codebook_dim, codebook_size, 1, merge, **reads)
        self.record_defaults(ProjectedBottleneck)
        self.codebook = Codebook(
            codebook_size,
            codebook_dim,
            user=type(self).__name__,
            commitment_weight=commitment_weight,
            decay=decay,
            learnable=learnable,
            cosine=cosine,
            kmeans_init=kmeans_init,
            dead_code_threshold=dead_code_threshold,
        )

    def check_shardable(self) -> None:
        self.codebook.check_shardable()

    def quantize(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.codebook(tokens)

    def nearest(self, tokens: Tensor) -> Tensor:
        return self.codebook.nearest(tokens).unsqueeze(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        return self.codebook.lookup(indices.squeeze(-1))


class MultiVQBottleneck(QuantizedBottleneck):
    """Several codebooks for each latent: one for each chunk of its channels, or one for what the one before left.

    Chunks: the latent is cut into K equal parts, each quantised by its own codebook (UniTok, arXiv 2502.20321,
    section 3; without the attention that projects there). Residual: each codebook quantises the rest that the
    sum of those before it leaves (residual vector quantisation, arXiv 2107.03312, algorithm 1). Each codebook is as in
    `VQBottleneck`; the losses are means over the codebooks.

    Args:
        encoder: spec of the encoder in front.
        num_codebooks: codebooks K.
        codebook_size: entries of each codebook.
        codebook_dim: channels of an entry; a latent has K times this number, or with `residual` this number.
        residual: quantise rests instead of chunks.
        commitment_weight: factor on the commitment loss.
        decay: of the moving averages.
        learnable: train the entries by gradients instead of moving averages.
        cosine: chunks and entries of length 1, compared by their cosine; not with `residual`, whose rests have lengths.
        kmeans_init: begin with k-means of the first training batch, instead of uniformly drawn entries.
        dead_code_threshold: replace an entry when the moving average of its uses in a step, over all processes, is
            below this; 0 replaces none.
        merge: merge squares of this many by this many neighbouring tokens into one latent.
        **reads: `layers`, `fuse`, `normalize`, `shortcut` and `temporal_merge` of `ProjectedBottleneck`.

    Raises:
        ValueError: for numbers out of range, for a learnable codebook with cosine, and for residuals with cosine.
        ImportError: without vector-quantize-pytorch.
    """

    codebooks: Sequence[Codebook]

    def __init__(
        self,
        encoder: EncoderSpec,
        num_codebooks: PositiveInt = 8,
        codebook_size: Int2 = 4096,
        codebook_dim: PositiveInt = 8,
        residual: bool = False,
        commitment_weight: NonNegativeFloat = 0.25,
        decay: UnitFloatBelow1 = 0.99,
        learnable: bool = False,
        cosine: bool = False,
        kmeans_init: bool = True,
        dead_code_threshold: NonNegativeFloat = 0.05,
        merge: PositiveInt = 1,
        **reads: Any,
    ) -> None:
        if residual and cosine:
            raise ValueError("MultiVQBottleneck has no residual codebooks with cosine: choose one of the two")
        channels = codebook_dim if residual else num_codebooks * codebook_dim
        super().__init__(encoder, channels, codebook_size, num_codebooks, merge, **reads)
        self.record_defaults(ProjectedBottleneck)
        self.residual = residual
        self.codebooks = nn.ModuleList(  # type: ignore[assignment]  # a sequence of them, as far as is needed here
            Codebook(
                codebook_size,
                codebook_dim,
                user=type(self).__name__,
                commitment_weight=commitment_weight,
                decay=decay,
                learnable=learnable,
                cosine=cosine,
                kmeans_init=kmeans_init,
                dead_code_threshold=dead_code_threshold,
            )
            for _ in range(num_codebooks)
        )

    def check_shardable(self) -> None:
        self.codebooks[0].check_shardable()  # all have the same settings

    def quantize(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms: list[dict[str, Tensor]] = []

        def step(codebook: Codebook, vectors: Tensor) -> Tensor:
            codes, losses = codebook(vectors)
            terms.append(losses)
            return codes

        codes = self._join(self._each(tokens, step))
        if self.residual:  # every rest would send the gradient once more
            codes = tokens + (codes - tokens).detach()
        return codes, {name: torch.stack([losses[name] for losses in terms]).mean() for name in terms[0]}

    def nearest(self, tokens: Tensor) -> Tensor:
        indices: list[Tensor] = []

        def step(codebook: Codebook, vectors: Tensor) -> Tensor:
            indices.append(codebook.nearest(vectors))
            return codebook.lookup(indices[-1])

        self._each(tokens, step)
        return torch.stack(indices, dim=-1)

    def lookup(self, indices: Tensor) -> Tensor:
        pairs = zip(self.codebooks, indices.unbind(dim=-1), strict=True)
        return self._join([codebook.lookup(index) for codebook, index in pairs])

    def to_indices(self, latents: Tensor) -> Tensor:
        if self.residual and self.num_codebooks > 1:  # the entry nearest to a sum is not always its first one
            raise ValueError(
                "MultiVQBottleneck with residual true has sums of entries as latents, which do not say their indices; "
                "a generator of codes needs residual false"
            )
        return super().to_indices(latents)

    def _each(self, tokens: Tensor, step: Callable[[Codebook, Tensor], Tensor]) -> list[Tensor]:
        """The codes that `step` gives for each codebook and what it has to quantise."""
        if not self.residual:
            chunks = tokens.chunk(self.num_codebooks, dim=-1)
            return [step(codebook, chunk) for codebook, chunk in zip(self.codebooks, chunks, strict=True)]
        codes: list[Tensor] = []
        for codebook in self.codebooks:
            codes.append(step(codebook, tokens))
            tokens = tokens - codes[-1].detach()
        return codes

    def _join(self, codes: list[Tensor]) -> Tensor:
        return torch.stack(codes).sum(dim=0) if self.residual else torch.cat(codes, dim=-1)
