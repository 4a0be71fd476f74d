"""Noise on latents: decoders meet it in training, and are chosen by how they decode it."""

from __future__ import annotations

import torch
from torch import Tensor

from uniflow.layers.precision import full_precision
from uniflow.tokenizer.latent_statistics import NormalizedLatents


def add_latent_noise(latents: Tensor, noise: Tensor, amount: float | Tensor, std: Tensor) -> Tensor:
    """z + amount std noise, in the latents' type.

    Args:
        latents: (B, C, h, w).
        noise: standard normal, of the same shape.
        amount: of noise, in standard deviations of each channel; a number, or one for each sample, (B,).
        std: standard deviation of each channel, (C,).
    """
    amounts = torch.as_tensor(amount, device=latents.device, dtype=noise.dtype).expand(len(latents)).view(-1, 1, 1, 1)
    return (full_precision(latents) + amounts * std.view(-1, 1, 1) * noise).to(latents.dtype)


def augment_latents(tokenizer: NormalizedLatents, latents: Tensor, tau: float) -> Tensor:
    """Latents with noise of a random strength for each sample, |N(0, tau^2)| (arXiv 2510.11690, section 4).

    Args:
        tokenizer: whose latent statistics give the unit of the noise; without them it is the batch's own standard
            deviation of each channel.
        latents: (B, C, h, w).
        tau: standard deviation of the strength; 0 gives the latents as they are and draws nothing.
    """
    if tau == 0:
        return latents
    plain = full_precision(latents)
    std = tokenizer.latent_std
    if std is None:
        std = plain.detach().std(dim=(0, 2, 3), correction=0)
    strength = tau * torch.randn(len(latents), device=latents.device, dtype=plain.dtype).abs()
    return add_latent_noise(latents, torch.randn_like(plain), strength, std)
