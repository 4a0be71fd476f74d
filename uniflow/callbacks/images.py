"""Originals, reconstructions and features as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from uniflow.pictures import pca_basis, pca_image, rows_to_grid, save_picture
from uniflow.tasks.base import to_unit_range
from uniflow.tasks.tokenizer import TokenizerTask


class ImageGrid(Callback):
    """After each validation and test a picture of the first batch, to TensorBoard and to `RUN/images/`.

    Rows from the top: originals; reconstructions, one row for each of the task's `eval_steps`; the teacher's last
    hidden state in its three principal colours; the student's in the same colours.

    Args:
        count: images to show; 0 switches the callback off.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self._show(trainer, pl_module, batch, f"val_{trainer.global_step:07d}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._show(trainer, pl_module, batch, "test")

    def _show(self, trainer: Trainer, pl_module: LightningModule, batch: Any, name: str) -> None:
        if not isinstance(pl_module, TokenizerTask) or not trainer.is_global_zero or self.count < 1:
            return
        picture = rows_to_grid(tokenizer_rows(pl_module, batch["image"][: self.count]))
        save_picture(picture, Path(trainer.default_root_dir) / "images" / f"{name}.png")
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(name.split("_")[0], picture, trainer.global_step)


@torch.no_grad()
def tokenizer_rows(task: TokenizerTask, images: Tensor) -> list[Tensor]:
    """Rows of pictures, each (B, 3, H, W) in [0, 1]: originals, reconstructions, features of teacher and student."""
    student, teacher = task.tokenizer.encoder(images), task.teacher(images)
    latents, _ = task.tokenizer.bottleneck(student.feature_map())
    size = (images.shape[-2], images.shape[-1])
    basis = pca_basis(teacher.feature_map())
    features = [pca_image(output.feature_map(), basis, size) for output in (teacher, student)]
    return [to_unit_range(images), *(image for _, image in task.decodings(latents, 0)), *features]
