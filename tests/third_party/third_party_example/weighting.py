import torch
from torch import Tensor

from uniflow.distill import LayerWeighting


class FirstLayers(LayerWeighting):
    """Only the first `count` layers are kept near the teacher's, and each counts the same."""

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        return (torch.arange(len(distances), device=distances.device) < self.count).to(distances.dtype)
