"""Images of validation and test: what the task shows of its first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file

from uniflow.callbacks.hooks import hooks_of
from uniflow.callbacks.side_job import side_job
from uniflow.core.numbers import CheckedNumbers, NonNegativeInt
from uniflow.core.pixels import to_uint8
from uniflow.pictures.drawing import rows_to_grid, save_picture
from uniflow.sharding.shard import is_sharded


class ImageGrid(CheckedNumbers, Callback):
    """After each validation and test an image of the first batch, to TensorBoard and to `RUN/images/`.

    Its rows are the task's `image_rows`. Those of a tokenizer, from the top: originals; reconstructions, one row for
    each of the task's `eval_steps`; the teacher's last hidden state in its three principal colours; the student's in
    the same colours.

    Args:
        count: images to show; 0 switches the callback off.
    """

    def __init__(self, count: NonNegativeInt = 8) -> None:
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
            with side_job(trainer, "drawing images"):
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
            with side_job(trainer, "drawing images"):
                self._show(trainer, pl_module, batch, "test")

    def _show(self, trainer: Trainer, pl_module: LightningModule, batch: Any, name: str) -> None:
        task = hooks_of(pl_module)
        if task is None or self.count < 1:
            return
        if not trainer.is_global_zero and not is_sharded(pl_module):  # a sharded model is run by all or by none
            return
        with torch.no_grad():
            rows = task.image_rows(batch, self.count)
        if not rows or not trainer.is_global_zero:
            return
        picture = rows_to_grid(list(rows.values()))
        folder = Path(trainer.default_root_dir) / "images"
        save_picture(picture, folder / f"{name}.png")
        if name == "test":  # for `uniflow report`
            pixels = {row: to_uint8(images).cpu().contiguous() for row, images in rows.items()}
            save_file(pixels, folder / "test.safetensors")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name.split("_")[0], picture, trainer.global_step)
