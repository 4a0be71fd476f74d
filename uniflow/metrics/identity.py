"""Digests and noise that depend on the image alone, not on its batch or process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def image_digests(images: Tensor) -> list[str]:
    """16 hex digits for each image of a batch (B, 3, H, W), from its pixels and its size."""
    pixels = images.detach().cpu().contiguous()
    size = f"{tuple(pixels.shape[1:])} {pixels.dtype}".encode()
    return [hashlib.blake2b(size + image.numpy().tobytes(), digest_size=8).hexdigest() for image in pixels]


def noise_for(digests: Sequence[str], shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Standard normal noise (B, *shape), float32 on the CPU, that depends on each image and the seed alone.

    So a reconstruction does not change with the batch, the process or the order in which its image is met.
    """
    noise = torch.empty(len(digests), *shape)
    for image, digest in zip(noise, digests, strict=True):
        generator = torch.Generator().manual_seed((int(digest, 16) ^ seed) >> 1)
        torch.randn(shape, generator=generator, out=image)
    return noise
