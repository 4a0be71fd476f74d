"""The linear path from a latent to the pixels of its patch, which a regression can solve before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniflow.layers import ExactLinear
from uniflow.layers.grid import to_tokens, unpatchify


class LinearShortcut(ExactLinear):
    """Latents (..., C) -> the pixels (..., 3 p^2) of their patches, linearly; starts at zero.

    Args:
        channels: channels C of a latent.
        patch_size: side p in pixels of its patch.
        mean: per-channel mean (R, G, B) that is taken from pixels in [0, 1] to get the decoder's target range.
        std: per-channel standard deviation that they are divided by.

    Attributes:
        variance: mean squared error of the patches, in the target range: how sure the path is of them. 1 until a
            regression has measured it.
    """

    variance: Tensor

    def __init__(self, channels: int, patch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(channels, 3 * patch_size**2)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.patch_size, self.mean, self.std = patch_size, tuple(mean), tuple(std)
        self.register_buffer("variance", torch.ones(()))

    def velocity(self, latents: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The best velocity if the patch were normal with mean `forward(latents)` and the measured variance s.

        E[x - eps | x_t] = (mu (1 - t) - x_t ((1 - t) - t s)) / (t^2 s + (1 - t)^2): at t = 0 one step leads to mu.

        Args:
            latents: (..., C).
            x_t: points on the path (..., 3 p^2).
            t: their times (...).
        """
        mu = self(latents)
        x_t, t, s = x_t.to(mu.dtype), t[..., None].to(mu.dtype), self.variance.to(mu.dtype)
        return (mu * (1 - t) - x_t * ((1 - t) - t * s)) / (t.square() * s + (1 - t).square()).clamp_min(1e-6)

    def image(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the whole image (B, 3, h p, w p) in the target range."""
        patches = self(to_tokens(latents))
        return unpatchify(patches, self.patch_size, (latents.shape[-2], latents.shape[-1]))

    def solution(self, weight: Tensor, bias: Tensor, error: Tensor) -> dict[str, Tensor]:
        """The state that makes `forward` the map `latents @ weight.T + bias` to pixels in [0, 1].

        Args:
            weight: (3 p^2, C), patches as `patchify` orders them.
            bias: (3 p^2,).
            error: mean squared error of each pixel value, (3 p^2,).
        """
        pixels = self.patch_size**2
        mean, std = (weight.new_tensor(values).repeat_interleave(pixels) for values in (self.mean, self.std))
        return {
            "weight": weight / std[:, None],
            "bias": (bias - mean) / std,
            "variance": (error / std.square()).mean(),
        }


def join(shortcut: LinearShortcut | None, tokens: Tensor, latents: Tensor) -> Tensor:
    """What decoding each patch needs: tokens (..., K), followed by the latents (..., C) that a shortcut reads."""
    return tokens if shortcut is None else torch.cat([tokens, latents.to(tokens.dtype)], dim=-1)


def split(shortcut: LinearShortcut | None, joined: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `join`; without a shortcut the latents have no channels."""
    channels = 0 if shortcut is None else shortcut.in_features
    return joined[..., : joined.shape[-1] - channels], joined[..., joined.shape[-1] - channels :]
