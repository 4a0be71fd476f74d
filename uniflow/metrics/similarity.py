"""How alike two sets of features are, and what nearest neighbours read from one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1024  # queries at a time: bounds the matrix of similarities


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414).

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of features whose mean over the images is taken out: HSIC in its biased
    form, as published. Rotating or scaling all features of a set changes nothing. Computed in float64, through D x D
    or N x N matrices, whichever are cheaper; both give the same number. The bias is towards 1 and large where there
    are fewer images than channels, so compare numbers of equally many images only.

    Args:
        x: features (N, D) of N >= 2 images.
        y: other features (N, E) of the same images, in the same order.

    Returns:
        A number in [0, 1], 1 for equal features; 0 if either set is one and the same vector for all images.

    Raises:
        ValueError: if the two are not features of the same two or more images.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"CKA needs (N, D) and (N, E) with N >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.double(), y.double()
    n, d, e = len(x), x.shape[1], y.shape[1]
    centred = [features - features.mean(dim=0) for features in (x, y)]
    # What rounding leaves of a constant is noise, and noise must not be aligned with anything.
    if any(bool(c.norm() <= 1e-12 * features.norm()) for c, features in zip(centred, (x, y), strict=True)):
        return 0.0
    x, y = centred
    if d * e + d * d + e * e <= n * (d + e):
        return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))
    gram_x, gram_y = x @ x.T, y @ y.T
    return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of the weighted nearest-neighbour classifier of DINO (arXiv 2104.14294).

    The k most similar training images vote for their class with the weight exp(cosine / temperature). In float64. The
    order of the images changes nothing: all that are as similar as the k-th vote too, and of classes with equal votes
    the lowest wins.

    Args:
        train_features: (N, D), any float type.
        train_labels: (N,), integers.
        test_features: (M, D).
        test_labels: (M,), integers.
        k: number of neighbours; all N if there are fewer.
        temperature: above 0; the smaller, the more the nearest counts.

    Returns:
        Share of right answers on the test features, in [0, 1].

    Raises:
        ValueError: if a split is empty, features and labels differ in number, or k or the temperature is not positive.
    """
    _check("train", train_features, train_labels, 1)
    _check("test", test_features, test_labels, 1)
    predicted = _vote(train_features, train_labels, test_features, k, temperature, leave_one_out=False)
    return float((predicted == test_labels).double().mean())


def leave_one_out_knn_accuracy(features: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.07) -> float:
    """`knn_accuracy` within one set: each image is classified by the others.

    Args:
        features: (N, D) with N >= 2, any float type.
        labels: (N,), integers.
        k: number of neighbours; all N - 1 if there are fewer.
        temperature: above 0.

    Returns:
        Share of right answers, in [0, 1].

    Raises:
        ValueError: with fewer than 2 images, or as `knn_accuracy`.
    """
    _check("only", features, labels, 2)
    predicted = _vote(features, labels, features, k, temperature, leave_one_out=True)
    return float((predicted == labels).double().mean())


def _check(name: str, features: Tensor, labels: Tensor, least: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) < least:
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"k-NN's {name} split needs features (N, D) and labels (N,), N >= {least}, got {shapes}")


def _vote(
    train_features: Tensor, train_labels: Tensor, features: Tensor, k: int, temperature: float, *, leave_one_out: bool
) -> Tensor:
    """The class of each of `features`; with `leave_one_out` these are the training features, without themselves."""
    if k < 1 or not temperature > 0:
        raise ValueError(f"k-NN needs k >= 1 and a temperature above 0, got {k} and {temperature}")
    classes, numbers = train_labels.unique(return_inverse=True)
    neighbours = NearestNeighbours(train_features, numbers, len(classes), temperature)
    [votes] = neighbours.votes(features, [k], leave_one_out=leave_one_out)
    return classes[votes.argmax(dim=1)]


class NearestNeighbours:
    """The classifier of `knn_accuracy`, fitted once and asked as often as one likes.

    Args:
        features: (N, D), N >= 1, any float type.
        labels: (N,), integers from 0 to `num_classes` - 1.
        num_classes: number of classes.
        temperature: above 0.

    Raises:
        ValueError: if there are no features, features and labels differ in number, or the temperature is not positive.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, temperature: float = 0.07) -> None:
        _check("train", features, labels, 1)
        if not temperature > 0:
            raise ValueError(f"k-NN needs a temperature above 0, got {temperature}")
        self._known, self._labels = F.normalize(features.double(), dim=1), labels
        self.num_classes, self.temperature = num_classes, temperature

    def votes(self, features: Tensor, ks: Sequence[int], *, leave_one_out: bool = False) -> list[Tensor]:
        """The votes for each class, float64 (M, num_classes), for each number of neighbours in `ks`.

        Args:
            features: (M, D); with `leave_one_out` those of the constructor, of which each is left out for itself.
            ks: numbers of neighbours; all there are if there are fewer.
            leave_one_out: whether a feature does not vote for itself.

        Raises:
            ValueError: if a k is not positive.
        """
        if min(ks) < 1:
            raise ValueError(f"k-NN needs k >= 1, got {min(ks)}")
        queries, parts = F.normalize(features.double(), dim=1), []
        for start in range(0, len(queries), _CHUNK):
            # Rounded, because equal neighbours get similarities that differ in the last digit.
            similarity = (queries[start : start + _CHUNK] @ self._known.T).round(decimals=12)
            if leave_one_out:
                rows = torch.arange(len(similarity), device=similarity.device)
                similarity[rows, start + rows] = -torch.inf
            parts.append([self._count(similarity, min(k, len(self._known) - leave_one_out)) for k in ks])
        return [torch.cat(votes) for votes in zip(*parts, strict=True)]

    def _count(self, similarity: Tensor, k: int) -> Tensor:
        least = similarity.topk(k, dim=1).values[:, -1:]
        voters = int((similarity >= least).sum(dim=1).max())
        nearest, index = similarity.topk(voters, dim=1)
        weights = ((nearest - nearest[:, :1]) / self.temperature).exp() * (nearest >= least)
        return weights.new_zeros(len(weights), self.num_classes).scatter_add_(1, self._labels[index], weights)
