"""Next-token prediction: a causal transformer over the codes of a discrete tokenizer."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.conditions import Conditioning, join
from uniflow.core.numbers import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveUnitFloat,
    check_numbers,
)
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.flow import guide
from uniflow.generators.base import LatentGenerator
from uniflow.generators.dit_layers import DiTBlock, modulated
from uniflow.layers.adaln import zero_linear
from uniflow.layers.attention import KeyValues, rotary_angles
from uniflow.layers.grid import PositionEmbedding, to_tokens
from uniflow.layers.precision import full_precision, without_autocast
from uniflow.metrics import image_digests, noise_for
from uniflow.tokenizer import Tokenizer


class NextToken(LatentGenerator):
    """Autoregressive transformer over codebook indices in raster order (LlamaGen, arXiv 2406.06525, section 2.2).

    Each latent is a token: the sum of learned embeddings of its K codes, or a projection of the latent that they stand
    for (VAR, arXiv 2404.02905), or both, at the place of the latent that is to be predicted from it. Blocks are those
    of `DiT`, with causal attention. The condition drives their norms (AdaLN-zero) and its tokens are attended to, as in
    `DiT` and `MAR`, instead of a prefix token: so networks are compared under the same condition, and guidance acts at
    every depth.

    The K codes of a latent are predicted one after another by a small causal transformer over them, under the trunk's
    vector of this latent (RQ-Transformer, arXiv 2203.01941, section 3.2; so does UniTok, arXiv 2502.20321). K heads at
    once take the codes for independent given all earlier latents, which chunks of one latent are not: a pair of codes
    that never occurs together would be drawn. `head_depth: 0` makes those K heads.

    Latents come in and go out; the tokenizer gives their indices (`Tokenizer.to_indices`), which float16 files of
    latents keep.

    Args:
        latent: spec of the latents, with their codebooks (`Tokenizer.latent_spec`).
        condition: spec of the condition.
        width: channels of a token, a multiple of 4.
        depth: number of blocks.
        num_heads: attention heads; `width / num_heads` has to be a multiple of 4.
        mlp_ratio: hidden channels of each MLP over `width`.
        token_input: what a token is made of: "codes", "latents", or "both". Codes that are close together look alike
            only as latents.
        head_depth: blocks of the transformer over the K codes of a latent, of the same width; 0 predicts them at once.
            One codebook has none.
        temperature: logits are divided by it in sampling.
        top_k: draw among this many of the likeliest codes; 0 is all.
        top_p: draw among the likeliest codes that together have this probability (arXiv 1904.09751); 1 is all.
        guidance: classifier-free guidance where none is given, on logits: l_null + g (l - l_null); 1 is none.

    Raises:
        ValueError: if the heads do not divide the width, or the latents are not codes.
    """

    validation_times = (0.5,)  # the loss has neither time nor noise

    def __init__(
        self,
        latent: LatentSpec,
        condition: ConditionSpec,
        width: PositiveInt = 768,
        depth: PositiveInt = 12,
        num_heads: PositiveInt = 12,
        mlp_ratio: PositiveFloat = 4.0,
        token_input: Literal["codes", "latents", "both"] = "codes",
        head_depth: NonNegativeInt = 3,
        temperature: PositiveFloat = 1.0,
        top_k: NonNegativeInt = 0,
        top_p: PositiveUnitFloat = 1.0,
        guidance: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 4:
            raise ValueError(f"NextToken: width / num_heads must be a multiple of 4, got {width} / {num_heads}")
        if latent.codebook_size is None or latent.num_codebooks is None:
            raise ValueError(
                f"NextToken: these latents of {latent.channels} channels are not codes; it needs a model.tokenizer "
                "with a discrete bottleneck (FSQBottleneck, VQBottleneck, MultiVQBottleneck), and LatentSpace as "
                "model.space, which leaves its codes as they are"
            )
        self.latent, self.token_width, self.head_dim = latent, width, width // num_heads
        self.codebook_size, self.num_codebooks = latent.codebook_size, latent.num_codebooks
        self.temperature, self.top_k, self.top_p, self.guidance = temperature, top_k, top_p, guidance
        self.codes = nn.Embedding(self.num_codebooks * self.codebook_size, width)
        nn.init.normal_(self.codes.weight, std=self.num_codebooks**-0.5)  # their sum has unit variance
        self.token_input = token_input
        self.latent_proj = None if token_input == "codes" else nn.Linear(latent.channels, width)
        self.start = nn.Parameter(torch.randn(width))
        # Rotary positions are relative: without these no token would know where in the image it is.
        self.positions = PositionEmbedding(width)
        self.condition_proj = nn.Linear(condition.width, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, mlp_ratio, condition.token_width, causal=True) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = zero_linear(width, 2 * width)
        head_depth = head_depth if self.num_codebooks > 1 else 0
        self.head = CodeHead(width, num_heads, mlp_ratio, head_depth, self.num_codebooks, self.codebook_size)
        self._tokenizers: list[Tokenizer] = []  # in a list, so that it is not a part of this module

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        own = (self.codebook_size, self.num_codebooks)
        given = (tokenizer.codebook_size, tokenizer.bottleneck.num_codebooks)
        if own != given:
            raise ValueError(f"NextToken was made for codebook size and number {own}, the tokenizer has {given}")
        check_codes(tokenizer)
        self._tokenizers = [tokenizer]

    @property
    def tokenizer(self) -> Tokenizer:
        """That of `use_tokenizer`."""
        if not self._tokenizers:
            raise ValueError("NextToken does not know the codes of its latents: call use_tokenizer first")
        return self._tokenizers[0]

    def draw_codes(
        self, *, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None
    ) -> None:
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen = {name: value for name, value in given.items() if value is not None}
        check_numbers(NextToken, chosen)  # the ranges of the constructor
        for name, value in chosen.items():
            setattr(self, name, value)

    def forward(self, indices: Tensor, conditioning: Conditioning) -> Tensor:
        """Logits of each code under those before it.

        Args:
            indices: (B, h, w, K), int64; code k of latent n changes the logits of later ones alone.
            conditioning: of the B samples.

        Returns:
            (B, h w, K, codebook_size).
        """
        rows, columns = indices.shape[1:3]
        embedded = self._embed(indices.flatten(1, 2))
        start = self.start.expand(len(indices), 1, -1)
        tokens = torch.cat([start, self._tokens(indices, embedded)[:, :-1]], dim=1)
        tokens = self.positions(tokens, (rows, columns))
        angles = rotary_angles((rows, columns), self.head_dim, indices.device)
        told = self._trunk(tokens, angles, self._condition(conditioning), conditioning).flatten(0, 1)
        return self.head(told, embedded.flatten(0, 1)[:, :-1]).unflatten(0, (len(indices), -1))

    def loss(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """`{"cross_entropy": mean of -log p(code) in nats}`, over all codes of all latents."""
        indices = self.tokenizer.to_indices(latents, normalized=True)
        logits = self(indices, conditioning)
        with without_autocast(latents.device):
            return {"cross_entropy": F.cross_entropy(full_precision(logits).flatten(0, 2), indices.flatten())}

    def validation_loss(
        self, latents: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        """As `loss`, which has nothing random: noise and times are not used."""
        return self.loss(latents, conditioning)

    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """As the base class says. Every code is drawn by a number of its own, a function of its image's noise.

        Raises:
            ValueError: if `steps` are given: there are as many as latents.
        """
        if steps is not None:
            raise ValueError("NextToken makes one latent after another, so it has no number of steps: leave steps out")
        strength = self.guidance if guidance is None else guidance
        told = conditioning if strength == 1 else join(conditioning, unconditional)
        rows, columns = noise.shape[-2:]
        uniform = _uniform(noise, self.num_codebooks)
        angles = rotary_angles((rows, columns), self.head_dim, noise.device)
        places = self.positions(self.start.new_zeros(1, rows * columns, len(self.start)), (rows, columns))
        condition, caches = self._condition(told), [KeyValues() for _ in self.blocks]
        token, drawn = self.start.expand(len(told.vector), 1, -1), []
        for n in range(rows * columns):
            known = self._trunk(token + places[:, n : n + 1], angles[n : n + 1], condition, told, caches)
            drawn.append(self._draw(known[:, 0], uniform[:, n], strength))
            token = self._tokens(drawn[-1][:, None, None], self._embed(drawn[-1])[:, None])
            token = _repeated(token, len(known))
        indices = torch.stack(drawn, dim=1).unflatten(1, (rows, columns))
        return self.tokenizer.from_indices(indices, normalize=True)

    def _draw(self, told: Tensor, uniform: Tensor, guidance: float) -> Tensor:
        """The K codes of a latent, (B, K), by uniform numbers of this shape; guided, `told` has both halves."""
        caches = [KeyValues() for _ in self.head.blocks]
        token, drawn = told, []
        for k in range(self.num_codebooks):
            logits = full_precision(self.head.step(k, told, token, caches))
            if guidance != 1:
                conditional, free = logits.chunk(2)
                logits = guide(conditional, free, guidance)
            kept = likeliest(logits / self.temperature, self.top_k, self.top_p)
            drawn.append(draw(kept, uniform[:, k]))
            token = _repeated(self.codes(drawn[k] + k * self.codebook_size), len(told))
        return torch.stack(drawn, dim=1)

    def _embed(self, indices: Tensor) -> Tensor:
        """Indices (..., K) -> (..., K, width)."""
        first = torch.arange(self.num_codebooks, device=indices.device) * self.codebook_size
        return self.codes(indices + first)

    def _tokens(self, indices: Tensor, embedded: Tensor) -> Tensor:
        """Tokens (B, h w, width) of indices (B, h, w, K) and the embeddings of these codes (B, h w, K, width)."""
        codes = embedded.sum(dim=2)
        if self.latent_proj is None:
            return codes
        latents = self.latent_proj(to_tokens(self.tokenizer.from_indices(indices, normalize=True)))
        return codes + latents if self.token_input == "both" else latents

    def _condition(self, conditioning: Conditioning) -> Tensor:
        return self.condition_proj(conditioning.vector)[:, None]

    def _trunk(
        self,
        tokens: Tensor,
        angles: Tensor,
        condition: Tensor,
        conditioning: Conditioning,
        caches: list[KeyValues] | None = None,
    ) -> Tensor:
        """What is known of each latent before it, (B, N, width); with caches of the next one alone."""
        for number, block in enumerate(self.blocks):
            cache = None if caches is None else caches[number]
            tokens = block(tokens, condition, angles, conditioning.tokens, conditioning.mask, cache)
        return modulated(self.final_norm(tokens), self.final_modulation, condition)


class CodeHead(nn.Module):
    """The logits of the K codes of a latent, one after another, or at once with a depth of 0.

    Args:
        width: channels of the trunk's vector, and of this head.
        num_heads: attention heads.
        mlp_ratio: hidden channels of each MLP over `width`.
        depth: number of blocks.
        num_codebooks: codes K.
        codebook_size: entries of each.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, depth: int, num_codebooks: int, codebook_size: int
    ) -> None:
        super().__init__()
        self.num_codebooks, self.head_dim = num_codebooks, width // num_heads
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, mlp_ratio, None, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.outputs = nn.ModuleList(zero_linear(width, codebook_size) for _ in range(num_codebooks))

    def forward(self, told: Tensor, embedded: Tensor) -> Tensor:
        """The trunk's vectors (M, width) and the first K - 1 codes (M, K - 1, width) -> logits (M, K, entries)."""
        tokens = told[:, None].expand(-1, self.num_codebooks, -1)
        if len(self.blocks):
            tokens = torch.cat([tokens[:, :1], embedded], dim=1)
        for block in self.blocks:
            tokens = block(tokens, told[:, None], self._angles(told), None, None)
        outputs = zip(self.outputs, self.norm(tokens).unbind(dim=1), strict=True)
        return torch.stack([output(token) for output, token in outputs], dim=1)

    def step(self, number: int, told: Tensor, token: Tensor, caches: list[KeyValues]) -> Tensor:
        """Logits (M, entries) of one code.

        Args:
            number: of its codebook.
            told: (M, width), the trunk's vectors.
            token: (M, width), the code before it; of the first code `told`.
            caches: one for each block, of the codes before.
        """
        tokens = token[:, None] if len(self.blocks) else told[:, None]
        for block, cache in zip(self.blocks, caches, strict=True):
            tokens = block(tokens, told[:, None], self._angles(told)[number : number + 1], None, None, cache)
        return self.outputs[number](self.norm(tokens[:, 0]))

    def _angles(self, told: Tensor) -> Tensor:
        return rotary_angles((1, self.num_codebooks), self.head_dim, told.device)


def likeliest(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, V) in which codes that are not to be drawn are -inf.

    Args:
        logits: (B, V), float32.
        top_k: how many may be drawn, and as many more as are equally likely as the last; 0 is all.
        top_p: the likeliest of these that together have this probability (nucleus, arXiv 1904.09751); 1 is all.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        values, order = logits.sort(dim=-1, descending=True)
        shares = values.softmax(dim=-1)
        values = values.masked_fill(shares.cumsum(dim=-1) - shares >= top_p, -math.inf)
        logits = torch.full_like(logits, -math.inf).scatter(-1, order, values)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Indices (B,) with the probabilities softmax(logits), logits (B, V), by uniform numbers (B,) in [0, 1).

    Inverse of the distribution function, in float64: one number decides, whatever else is in the batch.
    """
    shares = logits.double().softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(shares, uniform[:, None].double() * shares[:, -1:], right=True)[:, 0]


def check_codes(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose `to_indices` does not undo its `from_indices`, as tried on 256 latents.

    Raises:
        ValueError: if it does not.
    """
    device = next(tokenizer.parameters()).device
    if device.type == "meta" or tokenizer.codebook_size is None:  # `uniflow plan` has no values
        return
    shape = (1, 16, 16, tokenizer.bottleneck.num_codebooks or 1)
    drawn = torch.randint(tokenizer.codebook_size, shape, generator=torch.Generator().manual_seed(0), device="cpu")
    with torch.no_grad():
        codes = tokenizer.from_indices(drawn.to(device))
        again = tokenizer.from_indices(tokenizer.to_indices(codes))
    if not torch.allclose(codes, again, rtol=1e-3, atol=1e-3 * float(codes.std())):
        name = type(tokenizer.bottleneck).__name__
        raise ValueError(
            f"NextToken: {name}.to_indices does not give back the codes of {name}.from_indices; implement the inverse "
            "(by default it is what `nearest` finds of the codes themselves)"
        )


def _repeated(values: Tensor, count: int) -> Tensor:
    """`values` for both halves of a guided batch of `count`, or as they are."""
    return values if len(values) == count else torch.cat([values, values])


def _uniform(noise: Tensor, codes: int) -> Tensor:
    """A uniform number in (0, 1) for each code, (B, N, codes), float64, of each sample's noise (B, C, h, w) alone."""
    drawn = noise_for(image_digests(noise.float()), (codes, *noise.shape[-2:]), seed=3).to(noise.device)
    return torch.special.ndtr(drawn.double()).flatten(2).transpose(1, 2)
