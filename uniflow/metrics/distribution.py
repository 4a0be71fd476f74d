"""How close two sets of images are: Frechet distance, KID and CMMD of their features, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]  # of inner products, element by element


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), float64.

    Raises:
        ValueError: with fewer than two samples.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")
    x = features.double()
    return x.mean(dim=0), torch.cov(x.T)


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared Frechet distance of two Gaussians (arXiv 1706.08500).

    The trace of the square root is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    symmetric: no complex root, nothing to discard.

    Args:
        mean1: (D,).
        covariance1: (D, D), symmetric, positive semi-definite.
        mean2: (D,).
        covariance2: (D, D).

    Returns:
        A number >= 0 up to rounding.
    """
    m1, s1, m2, s2 = (x.double() for x in (mean1, covariance1, mean2, covariance2))
    values, vectors = torch.linalg.eigh(s1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(0).sqrt().sum()
    return float((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross)


def kid(features1: Tensor, features2: Tensor) -> float:
    """Kernel distance: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    Over all pairs, not over random subsets: the same features give the same number, in any order.

    Args:
        features1: (N, D), N >= 2.
        features2: (M, D), M >= 2.
    """
    x, y = features1.double(), features2.double()
    d = x.shape[1]
    return _mmd(x, y, lambda inner: (inner / d + 1) ** 3)


def cmmd(features1: Tensor, features2: Tensor, sigma: float = 10.0) -> float:
    """1000 times the squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)) (arXiv 2401.09603).

    Published for unit-length CLIP embeddings; of other features it has another scale. Here the unbiased estimate.

    Args:
        features1: (N, D), N >= 2; brought to unit length.
        features2: (M, D), M >= 2.
        sigma: width of the kernel.
    """
    x, y = (F.normalize(f.double(), dim=1) for f in (features1, features2))
    # Of unit vectors |x - y|^2 = 2 - 2 x.y
    return 1000 * _mmd(x, y, lambda inner: torch.exp((inner - 1) / sigma**2))


def _mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of each set, got {n} and {m}")
    within = [
        (_total(z, z, kernel) - float(kernel(z.square().sum(dim=1)).sum())) / (len(z) * (len(z) - 1)) for z in (x, y)
    ]
    return sum(within) - 2 * _total(x, y, kernel) / (n * m)


def _total(x: Tensor, y: Tensor, kernel: Kernel, chunk: int = 1024) -> float:
    return sum(float(kernel(part @ y.T).sum()) for part in x.split(chunk))
