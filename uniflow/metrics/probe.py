"""What a linear classifier reads from frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.inference_mode(False)
@torch.enable_grad()
def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Accuracy of multinomial logistic regression on standardised features.

    Fitted to convergence by L-BFGS in float64 from zero, so that there is no learning rate to tune and no seed.

    Args:
        train_features: (N, D), any float type.
        train_labels: (N,), integers from 0.
        test_features: (M, D).
        test_labels: (M,).
        l2: weight of the squared norm of the classifier's matrix.
        iterations: at most so many L-BFGS iterations.

    Returns:
        Share of right answers on the test features, in [0, 1].

    Raises:
        ValueError: if a split is empty or features and labels differ in number.
    """
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if len(features) != len(labels) or not len(features):
            raise ValueError(f"the probe's {name} split has {len(features)} features and {len(labels)} labels")
    x, x_test = train_features.double(), test_features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    y = train_labels.long().clone()  # labels from a test loop are inference tensors, which autograd refuses
    classes = int(max(int(y.max()), int(test_labels.max()))) + 1
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    predicted = F.linear(x_test, weight.detach(), bias.detach()).argmax(dim=1)
    return float((predicted == test_labels.to(predicted.device)).double().mean())
