"""Masked autoregression over latent tokens, each drawn by a small flow of its own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from uniflow.conditions import Conditioning, join
from uniflow.core.numbers import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SamplerSteps,
    UnitFloat,
    UnitFloatBelow1,
)
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.flow import euler, guide, interpolate, sample_times, step_times, velocity_target
from uniflow.generators.base import LatentGenerator
from uniflow.generators.dit import DiTBlock
from uniflow.layers.adaln import PatchMLP
from uniflow.layers.attention import rotary_angles
from uniflow.layers.grid import PositionEmbedding, to_image, to_tokens
from uniflow.layers.precision import full_dtype, full_precision, without_autocast
from uniflow.metrics import image_digests, noise_for


class MAR(LatentGenerator):
    """Masked autoregressive model (arXiv 2406.11838): a transformer sees some of an image's latents and says of each
    missing one, by a vector, what it may be; a flow MLP draws the latent from noise under this vector.

    Training hides a random share of the latents. Sampling begins with none, and adds sets of them in random order, few
    at first. Of the paper's two stacks, an encoder of the known and a decoder of all latents, this is one that reads a
    learned vector instead of a missing latent; the condition drives its norms.

    Args:
        latent: spec of the latents.
        condition: spec of the condition.
        width: channels of a token, a multiple of 4.
        depth: number of blocks.
        num_heads: attention heads; `width / num_heads` has to be a multiple of 4.
        mlp_ratio: hidden channels of each MLP over `width`.
        head_width: channels of the flow MLP; it predicts velocities, so it should be wider than the latents.
        head_depth: its blocks.
        mask_min: least share of latents that training hides; the share is drawn from a normal distribution around 1,
            cut off below this and above 1.
        mask_std: its standard deviation.
        repeats: noises and times for each latent and step of training: the flow MLP is small.
        uniform_share: share of uniformly drawn training times; the others are sigmoid(N(0, 1)).
        steps: sets of latents where no number is given; at most one for each latent.
        flow_steps: Euler steps of the flow MLP for each set.
        guidance: classifier-free guidance where none is given; 1 is none.
        guidance_schedule: "linear": guidance grows from 1 with the share of latents that are there (the paper); or
            "constant".
        mlp_kernel: side of a depthwise convolution in the blocks' MLPs, an odd number (see `GatedMLP`); 0 is none. It
            sees the learned vector where latents are missing.

    Raises:
        ValueError: if the heads do not divide the width, or the kernel is even.
    """

    steps: int

    def __init__(
        self,
        latent: LatentSpec,
        condition: ConditionSpec,
        width: PositiveInt = 768,
        depth: PositiveInt = 24,
        num_heads: PositiveInt = 12,
        mlp_ratio: PositiveFloat = 4.0,
        head_width: PositiveInt = 1024,
        head_depth: PositiveInt = 6,
        mask_min: UnitFloatBelow1 = 0.7,
        mask_std: PositiveFloat = 0.25,
        repeats: PositiveInt = 4,
        uniform_share: UnitFloat = 0.1,
        steps: SamplerSteps = 64,
        flow_steps: SamplerSteps = 50,
        guidance: NonNegativeFloat = 1.0,
        guidance_schedule: Literal["linear", "constant"] = "linear",
        mlp_kernel: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if width % num_heads or width // num_heads % 4:
            raise ValueError(f"MAR: width / num_heads must be a multiple of 4, got {width} / {num_heads}")
        if mlp_kernel and mlp_kernel % 2 == 0:
            raise ValueError(f"MAR: mlp_kernel must be odd, or 0 for none, got {mlp_kernel}")
        self.latent, self.token_width, self.head_dim = latent, width, width // num_heads
        self.mask_min, self.mask_std, self.repeats, self.uniform_share = mask_min, mask_std, repeats, uniform_share
        self.steps, self.flow_steps = steps, flow_steps
        self.guidance, self.guidance_schedule = guidance, guidance_schedule
        self.input_proj = nn.Linear(latent.channels, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        # Rotary positions are relative: without these all missing latents of an empty image would look the same.
        self.positions = PositionEmbedding(width)
        self.condition_proj = nn.Linear(condition.width, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, mlp_ratio, condition.token_width, kernel=mlp_kernel) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.head_proj = nn.Linear(width, head_width)
        self.head = PatchMLP(latent.channels, head_width, head_depth)

    def forward(self, latents: Tensor, known: Tensor, conditioning: Conditioning) -> Tensor:
        """What each latent may be, (B, N, head_width), given the `known` (B, N) ones of latents (B, C, h, w)."""
        grid = (latents.shape[-2], latents.shape[-1])
        angles = rotary_angles(grid, self.head_dim, latents.device)
        tokens = torch.where(known[..., None], self.input_proj(to_tokens(latents)), self.mask_token)
        tokens = self.positions(tokens, grid)
        condition = self.condition_proj(conditioning.vector)[:, None]
        for block in self.blocks:
            tokens = block(tokens, condition, angles, conditioning.tokens, conditioning.mask, grid=grid)
        return self.head_proj(self.final_norm(tokens))

    def loss(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """`{"flow": mean squared error of the velocities of hidden latents}`."""
        count = latents.shape[-2] * latents.shape[-1]
        ranks = torch.rand(len(latents), count, device=latents.device).argsort(dim=1)  # a permutation's inverse is one
        known = self.known(ranks, torch.rand(len(latents), device=latents.device))
        shape = (self.repeats, len(latents), count)
        noise = torch.randn(*shape, latents.shape[1], device=latents.device, dtype=full_dtype(latents.dtype))
        times = sample_times(shape, device=latents.device, uniform_share=self.uniform_share)
        return self._loss(latents, known, noise, times, conditioning)

    def validation_loss(
        self, latents: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        tokens = to_tokens(noise.to(full_dtype(latents.dtype)))[None]
        draws = _draws(noise)
        known = self.known(draws[:, 0].argsort(dim=1), torch.special.ndtr(draws[:, 1, 0]))
        return self._loss(latents, known, tokens, times[:, None].expand(tokens.shape[:-1]), conditioning)

    def known(self, ranks: Tensor, uniform: Tensor) -> Tensor:
        """Which latents are not hidden, (B, N).

        Args:
            ranks: (B, N), the place of each latent in its image's order.
            uniform: (B,) in [0, 1], by which the share that is hidden is drawn.
        """
        cut = 0.5 * math.erfc((1 - self.mask_min) / self.mask_std / math.sqrt(2))
        normal = torch.special.ndtri((cut + uniform.double() * (0.5 - cut)).clamp(1e-9, 0.5))
        share = (1 + self.mask_std * normal).clamp(self.mask_min, 1)
        hidden = (share * ranks.shape[1]).ceil().clamp_min(1)
        return ranks < ranks.shape[1] - hidden[:, None]

    def _loss(
        self, latents: Tensor, known: Tensor, noise: Tensor, times: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        """Noise (R, B, N, C) and times (R, B, N) of each latent."""
        told = self(latents, known, conditioning)[None]
        data = to_tokens(full_precision(latents))[None]
        x_t = interpolate(noise, data, times[..., None].to(data.dtype))
        predicted = self.head(told, x_t, times)
        with without_autocast(latents.device):
            error = (full_precision(predicted) - velocity_target(noise, data)).square().mean(dim=-1)
            hidden = (~known).to(error.dtype)
            return {"flow": (error.mean(dim=0) * hidden).sum() / hidden.sum()}

    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """As the base class says; `steps` are sets of latents. Their order is a function of each sample's noise."""
        strength = self.guidance if guidance is None else guidance
        guided = strength != 1
        told = join(conditioning, unconditional) if guided else conditioning
        order = _draws(noise)[:, 0].argsort(dim=1).to(noise.device)
        ranks = order.argsort(dim=1)
        start = to_tokens(noise.to(full_dtype(noise.dtype)))
        tokens = torch.zeros_like(start)
        for first, last in pairwise(set_edges(start.shape[1], self.steps if steps is None else steps)):
            known, image = ranks < first, to_image(tokens, noise.shape[-2])
            twice = (torch.cat([image, image]), torch.cat([known, known])) if guided else (image, known)
            places = order[:, first:last, None]
            of_all = self(*twice, told)
            at = torch.cat([places, places]) if guided else places
            chosen = of_all.gather(1, at.expand(-1, -1, of_all.shape[-1]))
            rate = strength if self.guidance_schedule == "constant" else 1 + (strength - 1) * last / start.shape[1]
            index = places.expand(-1, -1, start.shape[-1])
            tokens = tokens.scatter(1, index, self._draw(chosen, start.gather(1, index), rate if guided else None))
        return to_image(tokens, noise.shape[-2])

    def _draw(self, told: Tensor, noise: Tensor, guidance: float | None) -> Tensor:
        """Latents (B, n, C) from noise; with guidance `told` holds both halves, (2 B, n, head_width)."""

        def velocity(x: Tensor, t: float) -> Tensor:
            x_in = x if guidance is None else torch.cat([x, x])
            times = torch.full(x_in.shape[:-1], t, device=x.device, dtype=x.dtype)
            predicted = full_precision(self.head(told, x_in, times))
            if guidance is None:
                return predicted
            conditional, free = predicted.chunk(2)
            return guide(conditional, free, guidance)

        return euler(velocity, noise, step_times(self.flow_steps))


def set_edges(count: int, steps: int) -> list[int]:
    """How many of `count` latents are there after each step, from 0 to `count`: sets grow by a cosine, none is empty.

    Args:
        count: latents of an image.
        steps: number of sets; more than `count` are as many.
    """
    steps = min(steps, count)
    missing = [count]
    for step in range(1, steps):
        planned = math.floor(count * math.cos(math.pi / 2 * step / steps))
        # One fewer than before at least, and one for each of the steps to come.
        missing.append(max(steps - step, min(missing[-1] - 1, planned)))
    return [count - left for left in (*missing, 0)]


def _draws(noise: Tensor) -> Tensor:
    """Two standard normal numbers for each latent, (B, 2, N), that depend on each sample's noise (B, C, h, w) alone."""
    return noise_for(image_digests(noise.float()), (2, *noise.shape[-2:]), seed=2).flatten(2).to(noise.device)
