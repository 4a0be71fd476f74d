"""What a linear classifier, or a linear regression of the pixels, reads from frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.pixels import to_unit_range


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Accuracy of `LogisticRegression`, fitted on one set and scored on another.

    Args:
        train_features: (N, D), any float type.
        train_labels: (N,), integers from 0.
        test_features: (M, D).
        test_labels: (M,).
        l2: weight of the squared norm of the classifier's matrix.
        iterations: at most this many L-BFGS iterations.

    Returns:
        Share of right answers on the test features, in [0, 1].

    Raises:
        ValueError: if a split is empty or features and labels differ in number.
    """
    _check("train", train_features, train_labels)
    _check("test", test_features, test_labels)
    classes = int(max(int(train_labels.max()), int(test_labels.max()))) + 1
    classifier = LogisticRegression(train_features, train_labels, classes, l2=l2, iterations=iterations)
    predicted = classifier.logits(test_features).argmax(dim=1)
    return float((predicted == test_labels.to(predicted.device)).double().mean())


class LogisticRegression:
    """Multinomial logistic regression on standardised features.

    Fitted to convergence by L-BFGS in float64 from zero, so that there is no learning rate to tune and no seed. The
    loss is the mean cross entropy plus `l2` times the squared norm of the matrix: scikit-learn's with
    C = 1 / (2 N `l2`).

    Args:
        features: (N, D), any float type.
        labels: (N,), integers from 0 to `num_classes` - 1.
        num_classes: number of classes.
        l2: weight of the squared norm of the classifier's matrix.
        iterations: at most this many L-BFGS iterations.

    Raises:
        ValueError: if there are no features, or features and labels differ in number.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, *, l2: float = 1e-3, iterations: int = 200
    ) -> None:
        _check("train", features, labels)
        x = features.double()
        self._mean, self._std = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
        self._weight, self._bias = _fit((x - self._mean) / self._std, labels, num_classes, l2, iterations)

    def logits(self, features: Tensor) -> Tensor:
        """Logits of features (M, D), float64 (M, num_classes)."""
        return F.linear((features.double() - self._mean) / self._std, self._weight, self._bias)


@torch.inference_mode(False)
@torch.enable_grad()
def _fit(x: Tensor, labels: Tensor, num_classes: int, l2: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of logistic regression on standardised features, float64."""
    # Tensors from a test loop are inference tensors, which autograd refuses.
    x, y = x.clone(), labels.long().clone()
    weight = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _check(split: str, features: Tensor, labels: Tensor) -> None:
    if len(features) != len(labels) or not len(features):
        raise ValueError(f"the probe's {split} split has {len(features)} features and {len(labels)} labels")


@torch.no_grad()
def linear_psnr(
    train_tokens: Tensor,
    train_images: Tensor,
    test_tokens: Tensor,
    test_images: Tensor,
    *,
    patch_size: int,
    rank: int | None = 64,
    ridge: float = 1e-6,
) -> float:
    """PSNR of images whose patches are read from their tokens by ridge regression of reduced rank.

    How much of the image a layer keeps within a linear map's reach. The regression is Izenman's (1975) with equal
    weights: the fitted values are projected on their first principal components. Computed in float64.

    Args:
        train_tokens: one token a patch, row-major, (B, N, D), to fit the regression on.
        train_images: their images, (B, 3, H, W), uint8 or float in [0, 1].
        test_tokens: (B', N', D).
        test_images: (B', 3, H', W').
        patch_size: side of a patch in pixels.
        rank: values that the pixels of a patch are read through; None is no limit.
        ridge: penalty on the squared weights, over the tokens' mean variance.

    Returns:
        Peak signal-to-noise ratio in dB, from the mean squared error of all test pixels in [0, 1].

    Raises:
        ValueError: if tokens and patches differ in number, or the rank is not positive.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"linear_psnr: rank must be at least 1 or None, not {rank}")
    pixels = []
    for tokens, images in ((train_tokens, train_images), (test_tokens, test_images)):
        pixels_01 = to_unit_range(images, torch.float64).double()
        patches = F.unfold(pixels_01, patch_size, stride=patch_size).transpose(1, 2)
        if patches.shape[:2] != tokens.shape[:2]:
            raise ValueError(f"linear_psnr: {tuple(tokens.shape[:2])} tokens for {tuple(patches.shape[:2])} patches")
        pixels.append(patches.flatten(0, 1))
    (y, y_test), x, x_test = pixels, train_tokens.flatten(0, 1).double(), test_tokens.flatten(0, 1).double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x = x - x_mean
    gram = x.T @ x
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + penalty, x.T @ (y - y_mean))
    if rank is not None:
        fitted = x @ weights
        components = torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -rank:]
        weights = weights @ components @ components.T
    error = (x_test - x_mean) @ weights + y_mean - y_test
    return -10 * float(error.square().mean().log10())
