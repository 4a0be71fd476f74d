"""Lightning's DDP with two processes: our samplers stay, and a run resumed in mid-epoch reads what was left."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from uniflow.data.base import ImageDataModule

TRAIN, EVALUATION, BATCH = 21, 9, 2


class Numbers(Dataset):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "index": torch.tensor(int(index))}


class NumbersModule(ImageDataModule):
    def make_dataset(self, split: str) -> Dataset:
        return Numbers(TRAIN if split == "train" else EVALUATION)


class Reader(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("shared", torch.zeros(1))  # broadcast in every forward: ranks must take turns alike
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch["index"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen["val"].append(batch["index"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def worker(rank: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def fit(ckpt: str | None) -> dict[str, list[list[int]]]:
        model = Reader()
        saver = ModelCheckpoint(root, filename="{step}", save_top_k=-1, every_n_train_steps=7)
        Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, callbacks=[saver],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=root,
        ).fit(model, NumbersModule(BATCH, num_workers=0), ckpt_path=ckpt, weights_only=False)  # fmt: skip
        return model.seen

    whole = fit(None)
    rest = fit(f"{root}/step=7.ckpt")
    (Path(root) / f"rank{rank}.json").write_text(json.dumps({"whole": whole, "rest": rest}))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_of_lightning(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=2)
    ranks: list[Any] = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert rank["rest"]["train"] == rank["whole"]["train"][7:]
        assert len(rank["whole"]["train"]) == 2 * 5
        assert len(rank["whole"]["val"]) == 2 * 3
    for epoch in range(2):
        seen = [i for rank in ranks for batch in rank["whole"]["train"][5 * epoch : 5 * epoch + 5] for i in batch]
        assert len(set(seen)) == 20
        seen = [i for rank in ranks for batch in rank["whole"]["val"][3 * epoch : 3 * epoch + 3] for i in batch]
        assert sorted(seen) == list(range(EVALUATION))
