"""Originals, reconstructions and features as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch import Tensor

from uniflow.core.pixels import to_unit_range
from uniflow.pictures.drawing import pca_basis, pca_image, rows_to_grid, save_picture
from uniflow.sharding.shard import is_sharded
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
        if not isinstance(pl_module, TokenizerTask) or self.count < 1:
            return
        if not trainer.is_global_zero and not is_sharded(pl_module):  # a sharded model is run by all or by none
            return
        rows = tokenizer_rows(pl_module, batch["image"][: self.count])
        if not trainer.is_global_zero:
            return
        picture = rows_to_grid(list(rows.values()))
        folder = Path(trainer.default_root_dir) / "images"
        save_picture(picture, folder / f"{name}.png")
        if name == "test":  # for `uniflow report`
            pixels = {row: (images.float() * 255).round().byte().cpu().contiguous() for row, images in rows.items()}
            save_file(pixels, folder / "test.safetensors")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name.split("_")[0], picture, trainer.global_step)


@torch.no_grad()
def tokenizer_rows(task: TokenizerTask, images: Tensor) -> dict[str, Tensor]:
    """Rows of pictures, each (B, 3, H, W) in [0, 1], by name.

    "original"; "reconstruction, S steps" for each of the task's `eval_steps`; "teacher" and "student", their last
    hidden states in the teacher's three principal colours.
    """
    student, teacher = task.tokenizer.encoder(images), task.teacher(images)
    latents, _ = task.tokenizer.bottleneck(student)
    size = (images.shape[-2], images.shape[-1])
    basis = pca_basis(teacher.feature_map())
    rows = {"original": to_unit_range(images)}
    for steps, decoded in task.decodings(images, latents):
        rows[f"reconstruction, {steps} step{'s' if steps > 1 else ''}"] = decoded
    for name, output in (("teacher", teacher), ("student", student)):
        rows[name] = pca_image(output.feature_map(), basis, size)
    return rows
