"""Diffusion transformer over normalised latents, trained by rectified flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from uniflow.conditions import Conditioning, join
from uniflow.core.numbers import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SamplerSteps, UnitFloat
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.flow import (
    data_to_velocity,
    dimension_shift,
    dopri5,
    euler,
    guide,
    heun,
    interpolate,
    need_torchdiffeq,
    sample_times,
    shift_times,
    step_times,
    velocity_target,
)
from uniflow.generators.base import LatentGenerator
from uniflow.generators.dit_layers import DiTBlock, OutputLayer, WideHead, modulated
from uniflow.layers.adaln import TimeEmbedding, zero_linear
from uniflow.layers.attention import rotary_angles
from uniflow.layers.grid import PositionEmbedding, to_image, to_tokens
from uniflow.layers.precision import full_dtype, full_precision, without_autocast


class DiT(LatentGenerator):
    """Diffusion transformer (arXiv 2212.09748) with rotary positions, normalised queries and keys, and SwiGLU.

    Each latent is a token. The velocity v(x_t, t, c) carries noise (t = 0) to latents (t = 1) along straight lines.

    Args:
        latent: spec of the latents.
        condition: spec of the condition.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads; `width / num_heads` has to be a multiple of 4.
        mlp_ratio: hidden channels of each MLP over `width`.
        prediction: what the network predicts: "velocity", or "data", the clean latent. Of latents with more channels
            than the network, or its wide head, only data can be predicted (arXiv 2511.13720).
        shift: how far the times move towards the noise, see `shift_times`; "auto" takes `dimension_shift` of the
            numbers in the latents of an image, but at least 1.
        uniform_share: share of uniformly drawn training times; the others are sigmoid(N(0, 1)). Both are shifted.
        steps: sampler steps where none are given.
        method: "euler"; "heun", which costs two evaluations a step; or "dopri5", which takes each image alone, with as
            many evaluations as its `tolerance` needs. Of a network that predicts data the last one of `steps` steps
            stays Euler's in the latter two.
        tolerance: error that a step of "dopri5" may make, relative and absolute.
        guidance: strength of guidance where none is given; 1 is none.
        guidance_interval: times between which guidance works (arXiv 2404.07724).
        guidance_from: what guidance moves away from: "null", the network without the condition (classifier-free
            guidance), or "internal", what a block in the middle predicts (arXiv 2512.24176), which costs no second pass
            and needs an `internal_weight`.
        internal_weight: weight of the loss of a second output layer, which predicts the same after the first
            `internal_depth` blocks; 0 makes none.
        internal_depth: number of these blocks; None is half of all, at least 1.
        head_width: channels of a `WideHead` instead of the output layer, a multiple of `width / num_heads`; 0 is none.
        head_depth: number of its blocks, above 0 with a head.
        positions: "rotary", in attention only, or "both", with a sine-cosine embedding added to each token (arXiv
            2212.09748): rotary positions alone tell how far two tokens are apart, not where in the image they are.
        mlp_kernel: side of a depthwise convolution in the blocks' MLPs, an odd number (see `GatedMLP`); 0 is none.

    Raises:
        ImportError: if "dopri5" lacks torchdiffeq.
        ValueError: if the heads do not divide the width, the interval is empty, or there is nothing to guide from.
    """

    steps: int

    def __init__(
        self,
        latent: LatentSpec,
        condition: ConditionSpec,
        width: PositiveInt = 384,
        depth: PositiveInt = 12,
        num_heads: PositiveInt = 6,
        mlp_ratio: PositiveFloat = 4.0,
        prediction: Literal["velocity", "data"] = "velocity",
        shift: PositiveFloat | Literal["auto"] = "auto",
        uniform_share: UnitFloat = 0.1,
        steps: SamplerSteps = 50,
        method: Literal["euler", "heun", "dopri5"] = "euler",
        tolerance: PositiveFloat = 1e-3,
        guidance: NonNegativeFloat = 1.0,
        guidance_interval: tuple[UnitFloat, UnitFloat] = (0.0, 1.0),
        guidance_from: Literal["null", "internal"] = "null",
        internal_weight: NonNegativeFloat = 0.0,
        internal_depth: PositiveInt | None = None,
        head_width: NonNegativeInt = 0,
        head_depth: NonNegativeInt = 0,
        positions: Literal["rotary", "both"] = "rotary",
        mlp_kernel: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 4:
            raise ValueError(f"DiT: width / num_heads must be a multiple of 4, got {width} / {num_heads}")
        if guidance_interval[0] >= guidance_interval[1]:
            raise ValueError(f"DiT: guidance_interval must rise, got {list(guidance_interval)}")
        if (head_width > 0) != (head_depth > 0) or head_width % (width // num_heads):
            raise ValueError(
                f"DiT: a wide head has a head_width that is a multiple of {width // num_heads} (width / num_heads) "
                f"and a head_depth above 0, got {head_width} and {head_depth}"
            )
        if mlp_kernel and mlp_kernel % 2 == 0:
            raise ValueError(f"DiT: mlp_kernel must be odd, or 0 for none, got {mlp_kernel}")
        if method == "dopri5":
            need_torchdiffeq()
        self.internal_weight, self.internal_depth = internal_weight, internal_depth or max(1, depth // 2)
        if internal_weight > 0 and self.internal_depth >= depth:
            raise ValueError(f"DiT: internal_depth must be below depth {depth}, got {self.internal_depth}")
        self.guide_from(guidance_from)
        self.latent, self.token_width, self.head_dim = latent, width, width // num_heads
        self.prediction, self.shift, self.uniform_share = prediction, shift, uniform_share
        self.steps, self.method, self.guidance, self.tolerance = steps, method, guidance, tolerance
        self.guidance_interval = (guidance_interval[0], guidance_interval[1])
        self.input_proj = nn.Linear(latent.channels, width)
        self.positions = PositionEmbedding(width) if positions == "both" else None
        self.time_embed = TimeEmbedding(width)
        self.condition_proj = nn.Linear(condition.width, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, mlp_ratio, condition.token_width, kernel=mlp_kernel) for _ in range(depth)
        )
        self.head: WideHead | None = None
        if head_width > 0:
            heads = head_width // self.head_dim
            self.head = WideHead(latent.channels, width, head_width, head_depth, heads, mlp_ratio)
        else:
            self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.final_modulation = zero_linear(width, 2 * width)
            self.final_proj = zero_linear(width, latent.channels)
        # Made last, so that the other weights are those of a network without it.
        self.internal_output = OutputLayer(width, latent.channels) if internal_weight > 0 else None

    def guide_from(self, source: str) -> None:
        if source not in ("null", "internal"):
            raise ValueError(f"DiT: guidance_from must be null or internal, got {source!r}")
        if source == "internal" and self.internal_weight == 0:
            raise ValueError("DiT: guidance_from internal needs a network trained with an internal_weight above 0")
        self.guidance_from = source

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, internal: bool = False) -> Tensor:
        """What the network predicts, a velocity or clean latents.

        Args:
            x_t: (B, C, h, w).
            t: (B,).
            conditioning: of the B samples.
            internal: whether to give what the block in the middle predicts, too.

        Returns:
            (B, C, h, w); with `internal` (2 B, C, h, w), the network's own first.
        """
        rows, columns = x_t.shape[-2:]
        angles = rotary_angles((rows, columns), self.head_dim, x_t.device)
        noisy = to_tokens(x_t)
        tokens = self.input_proj(noisy)
        if self.positions is not None:
            tokens = self.positions(tokens, (rows, columns))
        condition = (self.time_embed(t) + self.condition_proj(conditioning.vector))[:, None]
        outputs = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition, angles, conditioning.tokens, conditioning.mask, grid=(rows, columns))
            if internal and self.internal_output is not None and number == self.internal_depth:
                outputs = [self.internal_output(tokens, condition)]
        if self.head is None:
            final = self.final_proj(modulated(self.final_norm(tokens), self.final_modulation, condition))
        else:
            final = self.head(noisy, tokens, condition, angles)
        return to_image(torch.cat([final, *outputs]), rows)

    def loss(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """`{"flow": mean squared error of the velocity}`; one time and one noise for each sample.

        With an `internal_weight` "internal" is this weight times the error of the output in the middle.
        """
        t = sample_times((len(latents),), device=latents.device, uniform_share=self.uniform_share)
        return self.validation_loss(latents, torch.randn_like(full_precision(latents)), t, conditioning)

    def validation_loss(
        self, latents: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        data = full_precision(latents)
        t = shift_times(times, self.shift_of(latents))
        t_image = t.view(-1, 1, 1, 1).to(data.dtype)
        x_t = interpolate(noise.to(data.dtype), data, t_image)
        heads = 1 if self.internal_output is None else 2
        predicted = self(x_t.to(latents.dtype), t, conditioning, heads == 2)
        with without_autocast(latents.device):
            target = velocity_target(noise.to(data.dtype), data)
            if self.prediction == "data":  # the target gets the same floor: where it acts, the loss is the data's
                target = data_to_velocity(data, x_t, t_image)
            errors = [
                (self._velocity(full_precision(output), x_t, t_image) - target).square().mean()
                for output in predicted.chunk(heads)
            ]
            weighted = (error * weight for error, weight in zip(errors, (1, self.internal_weight), strict=False))
            return dict(zip(("flow", "internal"), weighted, strict=False))

    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        if self.method == "dopri5" and len(noise) > 1:  # a sample shall not depend on its batch
            alone = (
                self.sample(noise[row], conditioning.rows(row), unconditional.rows(row), steps=steps, guidance=guidance)
                for row in _each(noise)
            )
            return torch.cat(list(alone))
        internal = self.guidance_from == "internal"
        both = conditioning if internal else join(conditioning, unconditional)

        def guided(x: Tensor, t: float, strength: float) -> Tensor:
            x_in = x if internal else torch.cat([x, x])
            conditional, weak = self.velocity(x_in, t, both, internal).chunk(2)
            return guide(conditional, weak, strength)

        return self._integrate(noise, conditioning, guided, steps, guidance)

    def sample_autoguided(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        weak: LatentGenerator,
        weak_conditioning: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        if not isinstance(weak, DiT):
            raise ValueError(f"a DiT is guided by a weaker DiT only, not by a {type(weak).__name__}")
        if self.method == "dopri5" and len(noise) > 1:
            told = ((noise[row], conditioning.rows(row), weak, weak_conditioning.rows(row)) for row in _each(noise))
            return torch.cat([self.sample_autoguided(*row, steps=steps, guidance=guidance) for row in told])

        def guided(x: Tensor, t: float, strength: float) -> Tensor:
            return guide(self.velocity(x, t, conditioning), weak.velocity(x, t, weak_conditioning), strength)

        return self._integrate(noise, conditioning, guided, steps, guidance)

    def velocity(self, x: Tensor, t: float, conditioning: Conditioning, internal: bool = False) -> Tensor:
        """The velocity (B, C, h, w) at x of this shape and one time; with `internal` (2 B, C, h, w), see `forward`."""
        times = torch.full((len(x),), t, device=x.device, dtype=x.dtype)
        predicted = full_precision(self(x, times, conditioning, internal))
        x_in = torch.cat([x, x]) if internal else x
        return self._velocity(predicted, x_in, torch.full((1, 1, 1, 1), t, device=x.device, dtype=x.dtype))

    def _integrate(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        guided: Callable[[Tensor, float, float], Tensor],
        steps: int | None,
        guidance: float | None,
    ) -> Tensor:
        """Latents from noise; where guidance works `guided` gives the velocity of x, a time and the strength."""
        strength = self.guidance if guidance is None else guidance
        low, high = self.guidance_interval

        def velocity(x: Tensor, t: float) -> Tensor:
            if strength != 1 and low <= t <= high:
                return guided(x, t, strength)
            return self.velocity(x, t, conditioning)

        start = noise.to(full_dtype(noise.dtype))
        edges = torch.tensor(step_times(self.steps if steps is None else steps), dtype=torch.float64)
        times = shift_times(edges, self.shift_of(noise)).tolist()
        if self.method == "euler":
            return euler(velocity, start, times)
        # A velocity that is made of predicted data is not defined at t = 1: the last step stays Euler's.
        last = len(times) - 2 if self.prediction == "data" else len(times) - 1
        if last == 0:
            return euler(velocity, start, times)
        if self.method == "heun":
            reached = heun(velocity, start, times[: last + 1])
        else:
            reached = dopri5(velocity, start, times[: last + 1], self.tolerance)
        return euler(velocity, reached, times[last:])

    def shift_of(self, latents: Tensor) -> float:
        """The shift of the times for latents (B, C, h, w)."""
        if self.shift != "auto":
            return float(self.shift)
        return max(1.0, dimension_shift(math.prod(latents.shape[1:])))

    def _velocity(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return data_to_velocity(predicted, x_t, t) if self.prediction == "data" else predicted


def _each(samples: Tensor) -> list[slice]:
    """Slices of one sample each."""
    return [slice(number, number + 1) for number in range(len(samples))]
