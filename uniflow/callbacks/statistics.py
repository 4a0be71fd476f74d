"""Mean and standard deviation of the latents, measured when training ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from uniflow.callbacks.ema import EMA
from uniflow.callbacks.hooks import tokenizer_of
from uniflow.callbacks.side_job import side_job
from uniflow.core.numbers import CheckedNumbers, NonNegativeInt
from uniflow.data.first import FirstImages, rank_share
from uniflow.layers.precision import without_autocast
from uniflow.metrics import ChannelMoments
from uniflow.tokenizer import Tokenizer
from uniflow.training.trainer import data_of, evaluation_mode, has_split, is_dry_run


class LatentStatistics(CheckedNumbers, Callback):
    """At the end of fit: the latents' mean and standard deviation, channel by channel, into the tokenizer.

    Measured over all processes, in evaluation mode, without autocast, with the averaged weights if there is EMA: of
    what the exported tokenizer's `encode` gives. At the start of fit older statistics are forgotten.

    Args:
        split: whose images are measured, "val" or "test".
        max_images: largest number of images over all processes, the first ones; None takes all, 0 measures nothing.

    Raises:
        ValueError: for another split or a negative number.
    """

    def __init__(self, split: Literal["val", "test"] = "val", max_images: NonNegativeInt | None = None) -> None:
        if split not in ("val", "test"):
            raise ValueError(f"LatentStatistics.split must be val or test, got {split!r}")
        self.split = split
        self.max_images = max_images

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (tokenizer := tokenizer_of(pl_module)) is not None:
            tokenizer.clear_latent_statistics()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in on_fit_end: by then the model has left its device.
        tokenizer = tokenizer_of(pl_module)
        if tokenizer is None or self.max_images == 0 or is_dry_run(trainer):
            return
        data = data_of(trainer)
        if not has_split(data, self.split):
            rank_zero_info(f"there is no {self.split} data: the tokenizer gets no latent statistics")
            return
        rank_zero_info(
            f"measuring mean and standard deviation of the latents ({self.split} split), which the tokenizer keeps"
        )
        with side_job(trainer, "measuring the latent statistics"):
            batches = split_batches(data, self.split)
            share = rank_share(self.max_images, trainer.global_rank, trainer.world_size)
            with _as_evaluated(trainer, pl_module):
                moments = measure(tokenizer, FirstImages(batches, share)).compute()
            tokenizer.set_latent_statistics(moments.mean, moments.std, moments.count)
            for checkpoint in trainer.checkpoint_callbacks:  # they are in the checkpoint too
                if hasattr(checkpoint, "outdated"):
                    checkpoint.outdated = True


@torch.no_grad()
def measure(tokenizer: Tokenizer, batches: Iterable[Any]) -> ChannelMoments:
    """The moments of this process's latents."""
    moments, device = ChannelMoments(), next(tokenizer.parameters()).device
    for batch in batches:
        # What a loaded tokenizer gives, which is float32.
        with without_autocast(device), tokenizer.over_time(batch.get("frames", 1)):
            moments.update(tokenizer.encode(batch["image"].to(device)))
    return moments


def split_batches(data: LightningDataModule, split: str) -> Any:
    """The loader of the split "val" or "test"."""
    return data.val_dataloader() if split == "val" else data.test_dataloader()


@contextmanager
def _as_evaluated(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode and the averaged weights, as in a validation; afterwards everything is as before."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
    with evaluation_mode(pl_module):
        for average in averages:
            average.on_validation_start(trainer, pl_module)
        try:
            yield
        finally:
            for average in averages:
                average.on_validation_end(trainer, pl_module)
