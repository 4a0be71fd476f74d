"""One learned codebook: vector-quantize-pytorch holds and updates the entries, this module decides when."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniflow.bottleneck.quantized import import_library
from uniflow.core.distributed import world_size
from uniflow.layers.precision import without_autocast


class Codebook(nn.Module):
    """Vectors and the nearest of `size` entries (VQ-VAE, arXiv 1711.00937).

    In training the entries follow the vectors: by moving averages (appendix A.1 there), or as a parameter. Statistics
    are those of all processes, so that their codebooks stay equal. What is drawn comes from torch's global generator.

    Args:
        size: number of entries.
        dim: channels of a vector.
        user: name of the bottleneck, for messages.
        commitment_weight: factor on the commitment loss.
        decay: of the moving averages.
        learnable: the entries are a parameter, which a second loss pulls to its vectors.
        cosine: vectors and entries have length 1, so the nearest has the largest cosine.
        kmeans_init: the entries start as k-means centres of the first training batch; before, they are all zero.
        dead_code_threshold: entries that are used less often than this are replaced by vectors of the batch.

    Raises:
        ValueError: for a learnable codebook with cosine.
        ImportError: without vector-quantize-pytorch.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        user: str,
        commitment_weight: float,
        decay: float,
        learnable: bool,
        cosine: bool,
        kmeans_init: bool,
        dead_code_threshold: float,
    ) -> None:
        super().__init__()
        if learnable and cosine:
            raise ValueError(f"{user} has no learnable codebook with cosine: choose one of the two")
        self.commitment_weight = commitment_weight
        self.user = user
        self.learnable = learnable
        self.writes_entries = learnable and (kmeans_init or dead_code_threshold > 0)
        self.cosine = cosine
        self.processes = world_size()
        self.quantizer = import_library(user).VectorQuantize(
            dim,
            size,
            decay=decay,
            learnable_codebook=learnable,
            ema_update=not learnable,
            use_cosine_sim=cosine,
            kmeans_init=kmeans_init,
            threshold_ema_dead_code=dead_code_threshold,
            # Given here: the library would ask only once in a program.
            sync_codebook=self.processes > 1,
            # Losses and gradients are below: the library's send gradients into statistics and buffers.
            commitment_weight=0.0,
            rotation_trick=False,
        )

    def check_shardable(self) -> None:
        """Do nothing if only the optimizer writes the entries.

        Raises:
            ValueError: if training writes entries that are a parameter: it would reach the gathered copies only.
        """
        if self.writes_entries:
            raise ValueError(
                f"{self.user} writes entries of its learnable codebook in training, which sharding would lose: set "
                "learnable to false, or kmeans_init to false and dead_code_threshold to 0, or trainer.strategy to ddp"
            )

    def forward(self, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of training.

        Args:
            vectors: (..., dim), float32 or float64.

        Returns:
            Their codes (..., dim), through which gradients pass to `vectors` unchanged (straight through); and the
            losses "commitment", commitment_weight times the mean square of vector - code with no gradient to the code,
            and, of a learnable codebook, "codebook", the same mean with no gradient to the vector.

        Raises:
            ValueError: if training is distributed, but was not yet when this codebook was made.
        """
        if world_size() != self.processes:
            raise ValueError(
                f"a codebook made for processes={self.processes} is trained in {world_size()}, where copies would "
                "drift apart: build the model after torch.distributed is initialised"
            )
        with without_autocast(vectors.device):
            if self.cosine:
                vectors = F.normalize(vectors, dim=-1)
            codes, _, zero = self.quantizer(vectors.detach().reshape(1, -1, vectors.shape[-1]))
            zero.requires_grad_(False)  # a buffer of the library's: with a gradient it could not be moved and copied
            codes = codes.view_as(vectors)
            losses = {"commitment": self.commitment_weight * F.mse_loss(vectors, codes.detach())}
            if self.learnable:
                losses["codebook"] = F.mse_loss(codes, vectors.detach())
            return vectors + (codes - vectors).detach(), losses

    def nearest(self, vectors: Tensor) -> Tensor:
        """Vectors (..., dim) -> indices of their nearest entries, int64, (...). Changes nothing."""
        entries = self.quantizer.codebook.to(vectors.dtype)
        with without_autocast(vectors.device):
            # |v - e|^2 without the part that is the same for all entries.
            distances = torch.addmm(entries.square().sum(dim=1), vectors.flatten(0, -2), entries.T, alpha=-2)
        return distances.argmin(dim=1).view(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (...) -> entries (..., dim)."""
        return F.embedding(indices, self.quantizer.codebook)
