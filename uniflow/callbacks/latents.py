"""What `uniflow predict` leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor


class LatentWriter(BasePredictionWriter):
    """Writes each predicted batch to `RUN/latents/rank{R}-{batch}.safetensors`: "latents" (B, C, h, w), and "label"
    if the data has any."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = Path(trainer.default_root_dir) / "latents"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in prediction.items() if isinstance(v, Tensor)}
        save_file(tensors, folder / f"rank{trainer.global_rank:03d}-{batch_idx:06d}.safetensors")
