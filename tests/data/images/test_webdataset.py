"""WebDataset shards: order, resume, labels, odd samples, and clear errors."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from uniflow.data.images.shard_counts import shard_counts
from uniflow.data.images.shard_lists import shard_urls
from uniflow.data.images.shards import ShardReader
from uniflow.data.images.webdataset import WebDataset
from uniflow.data.skipped import SkipLog

SHARDS, PER_SHARD = 3, 10
FOLDERS = {"train": "", "val": "val", "test": "test"}


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (12, 12), value).save(file, "PNG")
    return file.getvalue()


def write(path: Path, values: Iterable[int], label: str | None = None, broken: Iterable[int] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as tar:
        for value in values:
            sample: dict[str, Any] = {"__key__": f"{value:04d}", "png": png(value)}
            if value in broken:
                sample["png"] = sample["png"][:40]
            if label == "cls":
                sample["cls"] = value % 3
            elif label == "json":
                sample["json"] = {"label": value % 3}
            tar.write(sample)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Images of the grey levels 0 ... 29 in three shards, used for all splits."""
    for i in range(SHARDS):
        write(tmp_path / f"set-{i}.tar", range(PER_SHARD * i, PER_SHARD * (i + 1)))
    return tmp_path


def module(folder: Path, **kwargs: Any) -> WebDataset:
    """The shards of `folder` to train on, and copies of them for validation and test."""
    for split in ("val", "test"):
        (folder / split).mkdir(exist_ok=True)
        for shard in folder.glob("set-*.tar"):
            shutil.copy(shard, folder / split)
    settings: dict[str, Any] = {
        **{split: str(folder / name / "set-{0..2}.tar") for split, name in FOLDERS.items()},
        "size": 8, "batch_size": 4, "num_workers": 0, "epoch_length": 24, "shuffle_buffer": 8,
    }  # fmt: skip
    return WebDataset(**{**settings, **kwargs})


def ids(batches: Iterable[dict[str, torch.Tensor]]) -> list[int]:
    return [int(image[0, 4, 4]) for batch in batches for image in batch["image"]]


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_sees_every_sample_once(shards: Path, workers: int) -> None:
    data = module(shards, num_workers=workers)
    data.setup("test")
    validation = data.val_dataloader()
    first, again, test = list(validation), list(validation), list(data.test_dataloader())
    for batches in (first, again, test):
        assert sorted(ids(batches)) == list(range(30))
    assert first[0]["image"].dtype == torch.uint8
    assert first[0]["image"].shape == (4, 3, 8, 8)
    assert set(first[0]) == {"image", "name"}
    for batch in test:
        assert batch["name"] == [f"{int(image[0, 4, 4]):04d}" for image in batch["image"]]
    assert set(next(iter(data.train_dataloader()))) == {"image"}


def test_more_workers_than_shards_are_lowered(shards: Path) -> None:
    with pytest.warns(UserWarning, match="3 val shards per process can feed 3 workers, not 5"):
        loader = module(shards, num_workers=5).val_dataloader()
    assert sorted(ids(loader)) == list(range(30))


@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_a_function_of_seed_and_epoch(shards: Path, resample: bool, workers: int) -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = module(shards, seed=seed, resample=resample, num_workers=workers).train_dataloader()
        assert len(loader) == 6
        return [ids(loader) for _ in range(3)]

    first = epochs(1)
    assert [len(epoch) for epoch in first] == [24, 24, 24]
    assert first == epochs(1)
    assert len({tuple(epoch) for epoch in [*first, *epochs(2)]}) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_come_again_after_as_many_epochs_as_an_image_has(tmp_path: Path, workers: int) -> None:
    for shard in range(SHARDS):
        with wds.TarWriter(str(tmp_path / f"set-{shard}.tar")) as tar:
            for number in range(4):
                noise = np.random.default_rng((shard, number)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(noise).save(file, "PNG")
                tar.write({"__key__": f"{number:03d}", "png": file.getvalue()})

    def crops(crops_per_image: int | None) -> list[set[bytes]]:
        more = {"crops_per_image": crops_per_image, "num_workers": workers, "epoch_length": 12, "resample": False}
        data = module(tmp_path, batch_size=1, **more)
        loader = data.train_dataloader()
        return [{image.numpy().tobytes() for batch in loader for image in batch["image"]} for _ in range(4)]

    again = crops(2)
    assert again[0] & again[2]
    assert not again[0] & again[1]
    assert len(set.union(*again)) <= 2 * 12 < len(set.union(*crops(None)))


def test_without_resampling_an_epoch_is_a_permutation(shards: Path) -> None:
    loader = module(shards, resample=False, epoch_length=30, batch_size=5).train_dataloader()
    for _ in range(2):
        epoch = ids(loader)
        assert sorted(epoch) == list(range(30))
        assert epoch != sorted(epoch)


def test_an_epoch_longer_than_the_shards_goes_on(shards: Path) -> None:
    for resample in (True, False):
        epoch = ids(module(shards, resample=resample, epoch_length=100).train_dataloader())
        assert len(epoch) == 100
        assert len(set(epoch)) > 20


@pytest.mark.parametrize("label", ["cls", "json"])
def test_labels(tmp_path: Path, label: str) -> None:
    for i in range(3):
        write(tmp_path / f"set-{i}.tar", range(10 * i, 10 * i + 10), label)
    data = module(tmp_path, num_classes=3)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert batch["label"].tolist() == [int(image[0, 0, 0]) % 3 for image in batch["image"]]
    assert data.class_names == ["0", "1", "2"]
    few = module(tmp_path, num_classes=2)
    assert {i % 3 for i in ids(few.val_dataloader())} == {0, 1}
    assert few.skip_log.counts() == {"val": 10}


class Reader(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, torch.Tensor]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch["image"]))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.evaluated += ids([batch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(run: Path, data: WebDataset, ckpt: Path | None = None, callbacks: Any = (), **kwargs: Any) -> Reader:
    model = Reader()
    Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_progress_bar=False, callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks), enable_model_summary=False, default_root_dir=run, num_sanity_val_steps=0,
        **kwargs,
    ).fit(model, data, ckpt_path=str(ckpt) if ckpt else None, weights_only=False if ckpt else None)  # fmt: skip
    return model


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("error:You're resuming from a checkpoint")
@pytest.mark.parametrize(
    ("resample", "workers"), [(True, 0), (False, 0), (False, 2), pytest.param(True, 2, marks=pytest.mark.slow)]
)
def test_a_resumed_fit_reads_what_was_left(shards: Path, tmp_path: Path, workers: int, resample: bool) -> None:
    # One sample is broken: the slot that the next readable one fills must be the same after a resume.
    write(shards / "set-1.tar", range(10, 20), broken=[13])
    settings: dict[str, Any] = {"num_workers": workers, "resample": resample, "scale": (0.2, 1.0)}
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(tmp_path, module(shards, **settings), callbacks=[saver]).seen
    assert [step[:2] for step in whole] == [(e, b) for e in range(2) for b in range(6)]
    for step in (3, 8) if workers and not resample else (1, 3, 6, 8):  # to start workers takes its time
        rest = fit(tmp_path, module(shards, **settings), tmp_path / f"step={step}.ckpt").seen
        assert [s[:2] for s in rest] == [s[:2] for s in whole[step:]]
        assert all(torch.equal(a[2], b[2]) for a, b in zip(rest, whole[step:], strict=True))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_odd_samples_are_skipped_and_named_once(shards: Path, tmp_path: Path) -> None:
    write(shards / "set-1.tar", range(10, 20), broken=[13, 14])
    with wds.TarWriter(str(shards / "set-2.tar")) as tar:
        tar.write({"__key__": "text", "txt": "no image"})
        tar.write({"__key__": "good", "png": png(20)})
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"3 train, 3 val; named in .*skipped_images\.log"):
        model = fit(run, module(shards, num_workers=2, resample=False, epoch_length=48))
    assert Counter(model.evaluated) == Counter(dict.fromkeys({*range(21)} - {13, 14}, 2))
    assert not {13, 14} & {int(i[0, 4, 4]) for *_, images in model.seen for i in images}
    lines = (run / "skipped_images.log").read_text().splitlines()
    named = {line.split("\t")[1].rsplit("/", 1)[-1] for line in lines}
    assert named == {"set-1.tar:0013", "set-1.tar:0014", "set-2.tar:text"}
    assert len(lines) == 6


def test_a_broken_shard_ends_early_in_training_and_stops_an_evaluation(shards: Path) -> None:
    data = (shards / "set-1.tar").read_bytes()
    (shards / "set-1.tar").write_bytes(data[: len(data) // 2])
    broken = module(shards, resample=False, epoch_length=48)
    assert len(set(ids(broken.train_dataloader()))) >= 20
    assert broken.skip_log.counts() == {"train": 1}
    with pytest.raises(ValueError, match=r"the val shard .*set-1\.tar is broken"):
        ids(broken.val_dataloader())


def test_settings_that_cannot_work_are_said_in_one_line(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"train shard .*none-0\.tar does not exist \(2 are missing\)"):
        module(shards, train=str(shards / "none-{0..1}.tar")).setup()
    with pytest.raises(ValueError, match=r"val shard .*x\*\.tar does not exist"):
        module(shards, val=str(shards / "x*.tar")).setup()
    with pytest.raises(ValueError, match="no test shards"):
        module(shards, test=[]).setup()
    with pytest.raises(ValueError, match="set epoch_length"):
        module(shards, epoch_length=None, train="https://host/a.tar").setup()
    with pytest.raises(ValueError, match="do not fill a batch"):
        module(shards, batch_size=64).setup()
    with pytest.raises(ValueError, match="epoch_length must be"):
        module(shards, epoch_length=0)
    (shards / "index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        module(shards).setup()
    (shards / "index.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    with pytest.raises(ValueError, match="num_classes is 3"):
        module(shards, num_classes=3).setup()
    (shards / "index.json").unlink()
    assert len(module(shards, epoch_length=None).train_dataloader()) == 7
    for i in range(3):
        write(shards / f"set-{i}.tar", [])
    with pytest.raises(ValueError, match="no sample in the"):
        ids(module(shards).train_dataloader())


def test_urls_and_counts(shards: Path) -> None:
    names = [str(shards / f"set-{i}.tar") for i in range(3)]
    assert shard_urls(str(shards / "set-*.tar"), "train") == names
    assert shard_urls([names[2], str(shards / "set-{0..1}.tar")], "train") == [names[2], *names[:2]]
    assert shard_urls("https://host/a-{00..02}.tar", "train")[2] == "https://host/a-02.tar"
    assert shard_counts(names, ShardReader("val", None, SkipLog(None))) == [10, 10, 10]
    assert shard_counts(["https://host/a.tar"], ShardReader("val", None, SkipLog(None))) is None


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http with curl")
def test_remote_shards(shards: Path) -> None:
    handler = functools.partial(QuietHandler, directory=str(shards))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        urls = f"http://127.0.0.1:{server.server_port}/set-{{0..2}}.tar"
        held_out = urls.replace("/set", "/val/set")
        data = module(shards, train=urls, val=held_out, resample=False, epoch_length=30, batch_size=5)
        assert sorted(ids(data.val_dataloader())) == list(range(30))
        assert sorted(ids(data.train_dataloader())) == list(range(30))
        gone = module(shards, val=held_out.replace("0..2", "0..3"))
        with pytest.raises(ValueError, match=r"set-3\.tar is broken"):
            ids(gone.val_dataloader())
    finally:
        server.shutdown()
        server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
