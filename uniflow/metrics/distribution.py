"""How close two sets of images are: Frechet distance, KID, CMMD, precision and recall of their features, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.numbers import check_ranges

NEIGHBOURS = 3  # of precision and recall, as in the paper
SPLITS = 10  # of the inception score, as in the paper
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


def kid(features1: Tensor, features2: Tensor, paired: bool = False) -> float:
    """Kernel distance: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    Over all pairs, not over random subsets: the same features give the same number, in any order.

    Args:
        features1: (N, D), N >= 2.
        features2: (M, D), M >= 2.
        paired: whether row i of both belongs together, as an image and its reconstruction do; see `unbiased_mmd`.
    """
    x, y = features1.double(), features2.double()
    d = x.shape[1]
    return unbiased_mmd(x, y, lambda inner: (inner / d + 1) ** 3, paired)


def cmmd(features1: Tensor, features2: Tensor, sigma: float = 10.0, paired: bool = False) -> float:
    """1000 times the squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)) (arXiv 2401.09603).

    Published for unit-length CLIP embeddings; of other features it has another scale. Here the unbiased estimate.

    Args:
        features1: (N, D), N >= 2; brought to unit length.
        features2: (M, D), M >= 2.
        sigma: width of the kernel.
        paired: whether row i of both belongs together, as an image and its reconstruction do; see `unbiased_mmd`.
    """
    x, y = (F.normalize(f.double(), dim=1) for f in (features1, features2))
    # Of unit vectors |x - y|^2 = 2 - 2 x.y
    return 1000 * unbiased_mmd(x, y, lambda inner: torch.exp((inner - 1) / sigma**2), paired)


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of generated images that look real, and share of real images that the generator can make (1904.06991).

    An image is near a set if some image of the set has it within the distance to its own k-th nearest neighbour of the
    set. Precision is the share of generated images near the real set, recall that of real images near the generated.

    Args:
        generated: features (N, D), N above `neighbours`.
        real: features (M, D), M above `neighbours`.
        neighbours: k.

    Raises:
        ValueError: with too few images.
    """
    least = neighbours + 1
    check_ranges("precision_recall", {"images": (min(len(generated), len(real)), least, 2**62)})
    generated, real = generated.double(), real.double()
    return _share_near(generated, real, neighbours), _share_near(real, generated, neighbours)


def _share_near(images: Tensor, others: Tensor, neighbours: int, chunk: int = 512) -> float:
    """The share of rows (N, D) within the radius of one of the others (M, D)."""
    # Each one is its own nearest, at distance 0.
    radii = torch.cat([torch.cdist(part, others).kthvalue(neighbours + 1).values for part in others.split(chunk)])
    near = sum(int((torch.cdist(part, others) <= radii).any(dim=1).sum()) for part in images.split(chunk))
    return near / len(images)


def inception_score(logits: Tensor, splits: int = SPLITS) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class), mean over splits (arXiv 1606.03498).

    Needs tens of thousands of images: with few it is too low. The images are put into splits by a fixed permutation.

    Args:
        logits: of a classifier, (N, K), N at least `splits`.
        splits: parts that are scored apart.

    Raises:
        ValueError: with fewer images than splits.
    """
    check_ranges("inception_score", {"images": (len(logits), splits, 2**62)})
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    scores = []
    for part in logits[order.to(logits.device)].double().tensor_split(splits):
        log_each = part.log_softmax(dim=1)
        log_mean = log_each.logsumexp(dim=0) - math.log(len(part))
        scores.append((log_each.exp() * (log_each - log_mean)).sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def unbiased_mmd(x: Tensor, y: Tensor, kernel: Kernel, paired: bool = False) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, Lemma 6).

    sum_{i != j} k(x_i, x_j) / (N (N - 1)) + sum_{i != j} k(y_i, y_j) / (M (M - 1)) - 2 mean of k(x_i, y_j)

    The cross term takes all i and j if the two sets are independent (their equation 3). Of pairs (x_i, y_i) it takes
    i != j only (their equation 4, with M = N): x_i and y_i are not independent, so k(x_i, y_i) has another expectation
    than k(x_i, y_j), and with it the estimate for y = x would be negative. Without it, it is exactly 0 then, for any N.
    It may be negative otherwise, too: its expectation is not.

    Args:
        x: (N, D), float64.
        y: (M, D).
        kernel: of inner products, element by element.
        paired: whether x_i and y_i belong together.

    Raises:
        ValueError: with fewer than two samples in a set, or for pairs of sets of different sizes.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of each set, got {n} and {m}")
    if paired and n != m:
        raise ValueError(f"a kernel distance of pairs needs as many images in both sets, got {n} and {m}")
    within = [_total_of_others(z, z, kernel) / (len(z) * (len(z) - 1)) for z in (x, y)]
    cross = _total_of_others(x, y, kernel) / (n * (n - 1)) if paired else _total(x, y, kernel) / (n * m)
    return sum(within) - 2 * cross


def _total_of_others(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """The sum of k(x_i, y_j) over i != j."""
    return _total(x, y, kernel) - float(kernel((x * y).sum(dim=1)).sum())


def _total(x: Tensor, y: Tensor, kernel: Kernel, chunk: int = 1024) -> float:
    return sum(float(kernel(part @ y.T).sum()) for part in x.split(chunk))
