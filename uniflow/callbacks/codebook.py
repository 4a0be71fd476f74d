"""How much of its codebooks a discrete tokenizer uses."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from uniflow.bottleneck import Bottleneck
from uniflow.callbacks.hooks import tokenizer_of
from uniflow.core.specs import EncoderOutput
from uniflow.training.trainer import is_logged_step


class CodebookUsage(Callback):
    """Logs the usage and the perplexity of the codebooks, means over codebooks; nothing for a continuous tokenizer.

    `train/codebook_usage` and `train/codebook_perplexity` are those of one batch, at steps that are logged;
    `val/...` and `test/...` those of the whole evaluation. All count the latents of all processes.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if is_logged_step(trainer):
            self._reset(pl_module)
            self._watch(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._log(trainer, pl_module, "train")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset(pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._watch(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _reset(self, pl_module: LightningModule) -> None:
        bottleneck = _discrete(pl_module)
        if bottleneck is not None:
            assert bottleneck.num_codebooks is not None
            assert bottleneck.codebook_size is not None
            size = (bottleneck.num_codebooks, bottleneck.codebook_size)
            self._counts = torch.zeros(size, dtype=torch.int64, device=pl_module.device)

    def _watch(self, pl_module: LightningModule) -> None:
        """Count the indices of the next forward pass: the batch's. Later passes are for images and probes."""
        bottleneck = _discrete(pl_module)
        if bottleneck is not None:
            self._unwatch()
            # Before the pass, whose end may move the codebook.
            self._hook = bottleneck.register_forward_pre_hook(self._count)

    def _unwatch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _count(self, bottleneck: nn.Module, args: tuple[EncoderOutput]) -> None:
        self._unwatch()
        assert isinstance(bottleneck, Bottleneck)
        assert self._counts is not None
        indices = bottleneck.indices(args[0])
        for counts, own in zip(self._counts, indices.flatten(0, -2).unbind(dim=-1), strict=True):
            counts += torch.bincount(own, minlength=len(counts))

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._unwatch()
        if self._counts is None:
            return
        counts, self._counts = trainer.strategy.reduce(self._counts, reduce_op="sum"), None
        for name, value in usage_and_perplexity(counts).items():
            pl_module.log(f"{stage}/codebook_{name}", value, sync_dist=True)


def usage_and_perplexity(counts: Tensor) -> dict[str, float]:
    """How evenly codebooks are used.

    Args:
        counts: how often each entry was chosen, (K, codebook_size).

    Returns:
        Means over the K codebooks of "usage", the share of entries that were chosen, in [0, 1]; and "perplexity",
        exp(-sum p log p) of the shares p, from 1 to codebook_size.
    """
    counts = counts.cpu().double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    perplexity = torch.special.entr(shares).sum(dim=1).exp()
    return {"usage": float((counts > 0).double().mean()), "perplexity": float(perplexity.mean())}


def _discrete(pl_module: LightningModule) -> Bottleneck | None:
    tokenizer = tokenizer_of(pl_module)
    return tokenizer.bottleneck if tokenizer is not None and tokenizer.codebook_size is not None else None
