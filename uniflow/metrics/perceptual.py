"""LPIPS as a metric."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from uniflow.layers.precision import without_autocast
from uniflow.losses.lpips import read_lpips
from uniflow.metrics.features import check_file


class LPIPS:
    """Distance in the deep features of a network (arXiv 1801.03924, version 0.1); lower is nearer.

    Published tables use AlexNet for evaluation and VGG16 for training.

    Args:
        weights: safetensors file of backbone and heads; docs/decoders.md has a script that makes it.
        backbone: the network that `weights` is for.
        sha256: first digits of the file's SHA-256; None takes any file, and the fingerprint tells them apart.

    Raises:
        ValueError: if the file is missing, another one, or does not fit the backbone.
    """

    def __init__(
        self, weights: str, backbone: Literal["alexnet", "vgg16"] = "alexnet", sha256: str | None = None
    ) -> None:
        self._hash = check_file(weights, sha256, "LPIPS weights")
        self._network = read_lpips(weights, backbone)
        self.backbone = backbone

    @torch.no_grad()
    def __call__(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """LPIPS of each image, (B,), for (B, 3, H, W) in [0, 1]."""
        network = self._network.to(original.device)
        with without_autocast(original.device):
            return network(reconstruction.float(), original.float())

    def identity(self) -> str:
        """Backbone and weights, for the protocol's fingerprint."""
        return f"{self.backbone}, weights {self._hash}"
