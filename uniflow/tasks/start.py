"""What a tokenizer's training does before its first step: measure, and start from a solution."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from uniflow.core.pixels import to_unit_range
from uniflow.data.base import ImageDataModule
from uniflow.data.first import FirstImages
from uniflow.metrics import psnr
from uniflow.start import Regression, calibrate, set_values
from uniflow.tasks.base import evaluation_mode

if TYPE_CHECKING:
    from uniflow.tasks.tokenizer import TokenizerTask

# Training images whose hidden states set the scale of each layer, and images that the start's PSNR is measured on.
CALIBRATION_IMAGES = 64
JUDGED_IMAGES = 64


def prepare(task: TokenizerTask, regression: Regression | None) -> None:
    """Calibrate the bottleneck, and write a regression's solution into the tokenizer.

    Of a regression it logs and prints "start/psnr", in dB, the mean over images of the validation split (of the
    training split, if there is none), and "start/feature_r2", the share of the last hidden state's variance that the
    latents explain on the training images.

    Args:
        task: in a trainer that is about to train its first step.
        regression: None leaves the random weights.

    Raises:
        ValueError: if a part has no linear path, or there are no images.
    """
    tokenizer, trainer = task.tokenizer, task.trainer
    with torch.no_grad(), evaluation_mode(tokenizer), trainer.precision_plugin.forward_context():
        if tokenizer.bottleneck.needs_calibration:
            calibrate(tokenizer, _images(task, _train_batches(trainer), CALIBRATION_IMAGES))
        if regression is None:
            return
        begin = time.perf_counter()
        seen = torch.zeros((), device=task.device)  # a foreign data module's pass can be shorter than what is asked for

        def counted() -> Iterator[Tensor]:
            for images in _images(task, _train_batches(trainer), regression.images):
                seen.add_(len(images))
                yield images

        solution = regression.fit(tokenizer, counted())
        used = int(trainer.strategy.reduce(seen, reduce_op="sum"))
        if task.feature_head is not None:
            set_values(task.feature_head, {"weight": solution.feature_weight, "bias": solution.feature_bias})
        seconds = time.perf_counter() - begin
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
        has_val = data is not None and is_overridden("val_dataloader", data, LightningDataModule)
        judged = data.val_dataloader() if has_val else _train_batches(trainer)
        results = {
            "start/psnr": _psnr(task, _images(task, judged, JUDGED_IMAGES)),
            "start/feature_r2": solution.feature_r2,
        }
    judged_on = "validation" if has_val else "training"
    rank_zero_info(
        f"start: regression on {used} images, {seconds:.0f} s; before any training the tokenizer "
        f"reconstructs {judged_on} images at {results['start/psnr']:.2f} dB (PSNR, 1 step), and its latents explain "
        f"{100 * solution.feature_r2:.0f} % of the variance of the encoder's last features"
    )
    if task.logger is not None:
        task.logger.log_metrics(results, step=0)


def _train_batches(trainer: Trainer) -> Iterable[Any]:
    """Training batches without end where the data module can give them, else one pass over its loader."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
    if isinstance(data, ImageDataModule):
        return data.training_batches()
    loader: Any = trainer.train_dataloader if data is None else data.train_dataloader()
    return loader


def _images(task: TokenizerTask, batches: Iterable[Any], count: int) -> Iterator[Tensor]:
    """The first `count` images over all processes; every process gets as many, as sharded networks need."""
    for batch in FirstImages(batches, -(-count // task.trainer.world_size)):
        yield batch["image"].to(task.device)


def _psnr(task: TokenizerTask, batches: Iterable[Tensor]) -> float:
    sums = torch.zeros(2, device=task.device)
    for images in batches:
        _, painted = next(task.decodings(images, task.tokenizer.encode(images)))
        originals = to_unit_range(images)
        painted = painted[..., : originals.shape[-2], : originals.shape[-1]]
        sums += torch.stack([psnr(painted, originals).sum(), sums.new_tensor(len(images))])
    total, count = task.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
    return total / max(count, 1)
