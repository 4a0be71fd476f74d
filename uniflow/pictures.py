"""Pictures that people look at: grids of images, features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid, save_image


def pca_basis(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three principal directions of a batch of feature maps.

    Args:
        features: (B, D, h, w), D >= 3.

    Returns:
        Mean (D,), directions (D, 3) and the half range (3,) that maps projections to [-1, 1] for all but the outer 2 %.
    """
    tokens = features.detach().double().permute(0, 2, 3, 1).flatten(0, 2)
    mean = tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh((tokens - mean).T @ (tokens - mean))
    directions = vectors[:, -3:].flip(1)
    # An eigenvector's sign is arbitrary: fix it, so that two runs show the same colours.
    directions = directions * directions.sum(dim=0).sign()
    half_range = ((tokens - mean) @ directions).abs().quantile(0.98, dim=0).clamp_min(1e-12)
    return mean, directions, half_range


def pca_image(features: Tensor, basis: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Feature maps (B, D, h, w) as colours (B, 3, *size) in [0, 1], one colour a patch, by a basis of `pca_basis`."""
    mean, directions, half_range = basis
    tokens = features.detach().double().permute(0, 2, 3, 1)
    colours = ((tokens - mean) @ directions / half_range * 0.5 + 0.5).clamp(0, 1)
    return F.interpolate(colours.permute(0, 3, 1, 2), size=size, mode="nearest").float()


def rows_to_grid(rows: Sequence[Tensor], scale: int = 1) -> Tensor:
    """Rows of images (B, 3, H, W) in [0, 1], all of one shape, as one picture (3, H', W'), one row under the other."""
    columns = rows[0].shape[0]
    images = torch.cat([row.detach().float().cpu() for row in rows])
    if scale > 1:
        images = F.interpolate(images, scale_factor=scale, mode="nearest")
    return make_grid(images.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) in [0, 1] as PNG, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)
