"""What a tokenizer's training does before its first step: measure, and start from a solution."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from uniflow.core.pixels import to_unit_range
from uniflow.data.base import ImageDataModule
from uniflow.data.first import FirstImages
from uniflow.layers import ExactLinear
from uniflow.metrics import psnr
from uniflow.start import Regression, calibrate, set_values
from uniflow.tokenizer import Tokenizer
from uniflow.training.trainer import data_of, evaluation_mode, has_split

# Training images whose hidden states set the scale of each layer, and images that the start's PSNR is measured on.
CALIBRATION_IMAGES = 64
JUDGED_IMAGES = 64


def train_parameters(tokenizer: Tokenizer, text: str) -> None:
    """Freeze all parameters whose names do not contain `text`.

    Raises:
        ValueError: if no parameter is left to train.
    """
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and text in name)
    if not any(parameter.requires_grad for parameter in tokenizer.parameters()):
        raise ValueError(
            f"train_only: no trained parameter of the tokenizer has {text!r} in its name; for 'temporal' the decoder "
            "needs a temporal_window"
        )


def prepare(
    trainer: Trainer,
    tokenizer: Tokenizer,
    regression: Regression | None,
    feature_head: ExactLinear | None,
    reconstruct: Callable[[Tensor], Tensor],
) -> None:
    """Calibrate the bottleneck, and write a regression's solution into the tokenizer.

    Of a regression it logs and prints "start/psnr", in dB, the mean over images of the validation split (of the
    training split, if there is none), and "start/feature_r2", the share of the last hidden state's variance that the
    latents explain on the training images.

    Args:
        trainer: about to train its first step.
        tokenizer: on the trainer's device.
        regression: None leaves the random weights.
        feature_head: a linear map from the latents to the teacher's features, which the regression sets too.
        reconstruct: images (B, 3, H, W) -> reconstructions in [0, 1], by which the start is judged.

    Raises:
        ValueError: if a part has no linear path, or there are no images.
    """
    with torch.no_grad(), evaluation_mode(tokenizer), trainer.precision_plugin.forward_context():
        if tokenizer.bottleneck.needs_calibration:
            calibrate(tokenizer, _images(trainer, train_batches(trainer), CALIBRATION_IMAGES))
        if regression is None:
            return
        begin = time.perf_counter()
        seen = torch.zeros((), device=trainer.strategy.root_device)  # a data module may give fewer than asked

        def counted() -> Iterator[Tensor]:
            for images in _images(trainer, train_batches(trainer), regression.images):
                seen.add_(len(images))
                yield images

        solution = regression.fit(tokenizer, counted())
        used = int(trainer.strategy.reduce(seen, reduce_op="sum"))
        if feature_head is not None:
            set_values(feature_head, {"weight": solution.feature_weight, "bias": solution.feature_bias})
        seconds = time.perf_counter() - begin
        has_val = has_split(data_of(trainer), "val")
        judged = data_of(trainer).val_dataloader() if has_val else train_batches(trainer)
        results = {
            "start/psnr": _psnr(trainer, reconstruct, _images(trainer, judged, JUDGED_IMAGES)),
            "start/feature_r2": solution.feature_r2,
        }
    judged_on = "validation" if has_val else "training"
    rank_zero_info(
        f"start: regression on {used} images, {seconds:.0f} s; before any training the tokenizer "
        f"reconstructs {judged_on} images at {results['start/psnr']:.2f} dB (PSNR, 1 step), and its latents explain "
        f"{100 * solution.feature_r2:.0f} % of the variance of the encoder's last features"
    )
    if trainer.logger is not None:
        trainer.logger.log_metrics(results, step=0)


def train_batches(trainer: Trainer) -> Iterable[Any]:
    """Training batches without end where the data module can give them, else one pass over its loader."""
    data = data_of(trainer)
    if isinstance(data, ImageDataModule):
        return data.training_batches()
    loader: Any = trainer.train_dataloader if data is None else data.train_dataloader()
    return loader


def _images(trainer: Trainer, batches: Iterable[Any], count: int) -> Iterator[Tensor]:
    """The first `count` images over all processes; every process gets as many, as sharded networks need."""
    for batch in FirstImages(batches, -(-count // trainer.world_size)):
        yield batch["image"].to(trainer.strategy.root_device)


def _psnr(trainer: Trainer, reconstruct: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> float:
    sums = torch.zeros(2, device=trainer.strategy.root_device)
    for images in batches:
        sums += torch.stack([psnr(reconstruct(images), to_unit_range(images)).sum(), sums.new_tensor(len(images))])
    total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
    return total / max(count, 1)
