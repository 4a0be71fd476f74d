"""Reduced-rank regression in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uniflow.core.moments import SecondMoments


@dataclass(frozen=True)
class LinearTokenizer:
    """A linear map to latents and those back to pixels and features, all float64.

    Attributes:
        encode_weight: (C, F).
        encode_bias: (C,); the latents have mean 0.
        decode_weight: (P, C).
        decode_bias: (P,).
        feature_weight: (Q, C).
        feature_bias: (Q,).
        error: mean squared error of each pixel value on the data of the regression, (P,).
        feature_r2: share of the features' variance that the latents explain there; nan without features.
    """

    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor
    feature_weight: Tensor
    feature_bias: Tensor
    error: Tensor
    feature_r2: float


def solve(
    moments: SecondMoments, channels: int, pixels: int, feature_share: float, ridge: float, scale: float = 1.0
) -> LinearTokenizer:
    """The C directions of the inputs that together predict pixels and features best (reduced-rank regression).

    Izenman 1975, "Reduced-rank regression for the multivariate linear model": with W the ridge regression's solution,
    the directions are W V for the leading eigenvectors V of the fitted targets' covariance. Targets are weighed so that
    of the total variance, pixels hold 1 - `feature_share` and features hold `feature_share`.

    Args:
        moments: of inputs (N, F) and targets (N, P + Q): P values of a patch, then Q features.
        channels: channels C of a latent.
        pixels: values P of a patch.
        feature_share: in [0, 1).
        ridge: share of itself by which each input's variance is raised.
        scale: standard deviation of each latent.

    Raises:
        ValueError: if there are more channels than inputs or targets.
    """
    covariance, cross = moments.input_covariance, moments.cross_covariance
    if channels > min(cross.shape):
        raise ValueError(f"start: {channels} channels cannot be solved for from {cross.shape[0]} inputs a latent")
    variance = moments.target_variance
    weights = torch.cat(
        [
            _weight(1 - feature_share, variance[:pixels]).expand(pixels),
            _weight(feature_share, variance[pixels:]).expand(len(variance) - pixels),
        ]
    )
    # In units of each input's own deviation, so that the size of a layer does not matter; constant inputs have none.
    spread = covariance.diagonal()
    unit = torch.where(spread > 1e-12 * moments.input_mean.square(), spread.rsqrt(), 0)
    correlation = covariance * unit[:, None] * unit
    correlation.diagonal().fill_(1 + ridge + 1e-12)
    full = unit[:, None] * torch.linalg.solve(correlation, unit[:, None] * cross * weights)
    _, vectors = torch.linalg.eigh(full.T @ covariance @ full)
    directions = full @ vectors[:, -channels:].flip(1)
    # Latents of mean 0 and one common size: what follows them is made for that.
    spread = (directions.T @ covariance @ directions).diagonal().clamp_min(0).sqrt()
    directions = directions * torch.where(spread > 1e-9 * spread.max(), scale / spread, 0)
    latent_covariance, latent_cross = directions.T @ covariance @ directions, directions.T @ cross
    decode = (torch.linalg.pinv(latent_covariance, hermitian=True) @ latent_cross).T
    error = (variance - (decode * latent_cross.T).sum(1)).clamp_min(0)
    features = variance[pixels:].sum()
    return LinearTokenizer(
        encode_weight=directions.T,
        encode_bias=-moments.input_mean @ directions,
        decode_weight=decode[:pixels],
        decode_bias=moments.target_mean[:pixels],
        feature_weight=decode[pixels:],
        feature_bias=moments.target_mean[pixels:],
        error=error[:pixels],
        feature_r2=float(1 - error[pixels:].sum() / features) if features > 0 else float("nan"),
    )


def _weight(share: float, variance: Tensor) -> Tensor:
    """The factor that gives these targets `share` of the total variance."""
    total = variance.sum()
    return (share / total).sqrt() if total > 0 else total.new_zeros(())
