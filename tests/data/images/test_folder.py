"""ImageFolder: labels, splits, order over processes, odd files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from uniflow.data.images.folder import ImageFolder, name_to_unit
from uniflow.data.images.listing import list_images


def paint(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (24, 20), value).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """60 images, each of a grey level of its own, so that a batch tells which file it comes from."""
    root = tmp_path / "photos"
    for i in range(60):
        paint(root / f"{i:03d}.png", 4 * i)
    return root


def folder(root: Path, **kwargs: Any) -> ImageFolder:
    settings: dict[str, Any] = {"size": 8, "batch_size": 4, "num_workers": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    return ImageFolder(str(root), **{**settings, **kwargs})


def ids(loader: Iterable[dict[str, torch.Tensor]]) -> list[int]:
    return [int(image[0, 4, 4]) // 4 for batch in loader for image in batch["image"]]


def names(data: ImageFolder, split: str) -> set[str]:
    data.setup()
    return {name.decode() for name in data.datasets[split].names}  # type: ignore[attr-defined]


def test_batches_are_uint8_and_splits_are_disjoint(flat: Path) -> None:
    data = folder(flat)
    data.setup("test")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (4, 3, 8, 8)
    assert set(batch) == {"image"}
    assert data.class_names is None
    val, test = ids(data.val_dataloader()), ids(data.test_dataloader())
    assert len(val) > 3
    assert len(test) > 3
    assert sorted([*val, *test, *(int(n[:3]) for n in names(data, "train"))]) == list(range(60))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["name"] == [f"{int(image[0, 4, 4]) // 4:03d}.png" for image in batch["image"]]


def test_adding_files_moves_none_to_another_split(flat: Path) -> None:
    before = {split: names(folder(flat), split) for split in ("train", "val", "test")}
    for i in range(50):
        paint(flat / "more" / f"new{i}.png")
    (flat / "000.png").unlink()
    for split, old in before.items():
        assert {n for n in names(folder(flat), split) if "/" not in n} == old - {"000.png"}
    places = [name_to_unit(f"{i}.jpg") for i in range(2000)]
    assert np.mean([p < 0.2 for p in places]) == pytest.approx(0.2, abs=0.03)


def test_subfolders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    for i in range(30):
        paint(tmp_path / "zebra" / f"{i}.png", 200)
        paint(tmp_path / "ant" / f"{i}.jpg", 50)
    data = folder(tmp_path)
    data.setup()
    assert data.class_names == ["ant", "zebra"]
    for batch in data.val_dataloader():
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == [int(image[0, 0, 0] > 100) for image in batch["image"]]
        assert [name.split("/")[0] == "zebra" for name in batch["name"]] == batch["label"].tolist()
    assert "label" not in next(iter(folder(tmp_path, labels=False).train_dataloader()))
    paint(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="outside of subfolders"):
        folder(tmp_path, labels=True).setup()
    data = folder(tmp_path)
    data.setup()
    assert data.class_names is None


def test_split_folders_are_used(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("val", 6), ("test", 5)):
        for i in range(n):
            paint(tmp_path / split / "ab"[i % 2] / f"{split}{i}.png")
    data = folder(tmp_path)
    data.setup()
    assert [len(names(data, s)) for s in ("train", "val", "test")] == [20, 6, 5]
    shutil.rmtree(tmp_path / "test")
    data = folder(tmp_path, test="val", val_fraction=0.3)
    assert len(names(data, "test")) == 6
    assert len(names(data, "val")) + len(names(data, "train")) == 20
    assert all(n.split("/")[1].startswith("train") for n in names(data, "val"))
    with pytest.raises(ValueError, match="both the validation and the test"):
        folder(tmp_path, val="val", test="val").setup()
    paint(tmp_path / "val" / "c" / "x.png")
    with pytest.raises(ValueError, match="class 'c'"):
        folder(tmp_path, test_fraction=0.3).setup()


def test_missing_and_empty_folders_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        folder(tmp_path / "none").setup()
    with pytest.raises(ValueError, match="holds no images") as info:
        folder(tmp_path).setup()
    assert "\n" not in str(info.value)
    for i in range(8):
        paint(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="raise val_fraction"):
        folder(tmp_path, val_fraction=0.0).setup()
    with pytest.raises(ValueError, match=r"the val folder .* does not exist"):
        folder(tmp_path, val="validation").setup()
    with pytest.raises(ValueError, match="batch_size"):
        folder(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="do not fill one batch"):
        folder(tmp_path, batch_size=64, val_fraction=0.4).train_dataloader()


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpeg", ".hidden.png", ".cache/d.png", "__MACOSX/e.png"):
        paint(tmp_path / "x.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "x.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert list_images(tmp_path) == ["a/c.jpeg", "b.PNG", "x.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_but_not_on_workers(flat: Path, workers: int) -> None:
    def epochs(seed: int, num_workers: int) -> list[torch.Tensor]:
        loader = folder(flat, seed=seed, num_workers=num_workers, size=12).train_dataloader()
        result = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            result.append(torch.cat([batch["image"] for batch in loader]))
        return result

    first = epochs(5, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, epochs(5, workers), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], epochs(6, 0)[0])


@pytest.mark.parametrize("buckets", [None, [12, (8, 16)]])
def test_crops_come_again_after_as_many_epochs_as_an_image_has(tmp_path: Path, buckets: list | None) -> None:
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")

    def crops(crops_per_image: int | None, epoch: int) -> set[bytes]:
        data = folder(tmp_path, size=12, batch_size=1, crops_per_image=crops_per_image, buckets=buckets)
        assert data.repeats_samples == (crops_per_image is not None)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return {image.numpy().tobytes() for batch in loader for image in batch["image"]}

    if buckets is None:
        assert crops(2, 0) == crops(2, 2) == crops(None, 0)
        assert crops(2, 1) == crops(2, 3) == crops(None, 1)
    assert len(set.union(*(crops(2, epoch) for epoch in range(8)))) <= 2 * len(buckets or [12]) * 10
    assert not crops(2, 0) & crops(2, 1)
    assert not crops(None, 0) & crops(None, 2)


class Reader(LightningModule):
    """Runs the loaders and notes which images pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[int]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen["train"] += ids([batch])
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen["val"] += ids([batch])

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen["test"] += ids([batch])

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> list[int]:
        return ids([batch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(run: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=run, **kwargs,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_files_are_replaced_in_training_and_dropped_in_evaluation(
    flat: Path, tmp_path: Path, workers: int
) -> None:
    bad = {split: sorted(names(folder(flat), split))[:2] for split in ("train", "val", "test")}
    for name in chain(*bad.values()):
        (flat / name).write_bytes(b"\x89PNG broken")
    data, model, run = folder(flat, num_workers=workers), Reader(), tmp_path / "run"
    trainer(run, max_epochs=2).fit(model, data)
    batches = len(names(data, "train")) // 4
    assert len(model.seen["train"]) == 2 * 4 * batches
    assert not {f"{i:03d}.png" for i in model.seen["train"]} & set(bad["train"])
    good = sorted(int(name[:3]) for name in names(data, "val") - set(bad["val"]))
    assert sorted(model.seen["val"]) == sorted(2 * good)

    with pytest.warns(UserWarning, match=r"2 test, 2 train, 2 val; named in .*skipped_images.log"):
        trainer(run).test(model, folder(flat, num_workers=workers))
    lines = (run / "skipped_images.log").read_text().splitlines()
    assert len(lines) == 6
    assert {tuple(line.split("\t")[:2]) for line in lines} == {(s, str(flat / n)) for s in bad for n in bad[s]}
    assert all(line.split("\t")[2] for line in lines)


def test_an_evaluation_batch_without_readable_images_is_passed_over(flat: Path) -> None:
    data = folder(flat, batch_size=2)
    first = sorted(names(data, "test"))[:2]
    for name in first:
        (flat / name).write_bytes(b"broken")
    assert {f"{i:03d}.png" for i in ids(data.test_dataloader())} == names(data, "test") - set(first)


def test_training_without_one_readable_image_says_so(flat: Path) -> None:
    for path in flat.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no readable image"):
        next(iter(folder(flat).train_dataloader()))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_prediction_and_overfitting_run_in_lightning(flat: Path, tmp_path: Path) -> None:
    data = folder(flat)
    found = trainer(tmp_path).predict(Reader(), data)
    assert sorted(chain(*(found or []))) == sorted(int(n[:3]) for n in names(data, "test"))
    model = Reader()
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(model, folder(flat))
    assert model.seen["train"][:8] == model.seen["train"][8:]
    assert len(model.seen["train"]) == 16


def held_out(data: ImageFolder) -> dict[str, set[Path]]:
    """The files of each split, by their real paths; no file is in two splits or twice in one."""
    real = {s: [(folder / name).resolve() for name in found] for s, (folder, found) in data.split_files().items()}
    everything = [path for paths in real.values() for path in paths]
    assert len(set(everything)) == len(everything)
    return {split: set(paths) for split, paths in real.items()}


@pytest.mark.parametrize(
    "spelling", ["held", "./held", "held/", "../photos/held", "link", "way/held", "{root}/held", "~/held"]
)
def test_what_is_held_out_is_never_trained_on(flat: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(flat))
    for i in range(5):
        paint(flat / "held" / f"{i}.png")
    (flat / "link").symlink_to("held")
    (flat / "way").symlink_to(".")
    splits = held_out(folder(flat, val=spelling.format(root=flat)))
    assert splits["val"] == set((flat / "held").iterdir())
    assert len(splits["train"] | splits["test"]) == 60


def test_folders_in_each_other_share_no_image(flat: Path) -> None:
    for i in range(3):
        paint(flat / "val" / "test" / f"{i}.png")
        paint(flat / "val" / f"{i}.png")
    splits = held_out(folder(flat, val="val", test="val/test"))
    assert [len(splits[split]) for split in ("train", "val", "test")] == [60, 3, 3]
    with pytest.raises(ValueError, match="both the validation and the test"):
        folder(flat, val="val", test="./val/").setup()
    with pytest.raises(ValueError, match=r"every image of .*photos \(train\) is held out"):
        folder(flat, val=".").setup()


def test_loops_and_second_names_are_passed_over(flat: Path, tmp_path: Path) -> None:
    (flat / "a").mkdir()
    (flat / "a" / "up").symlink_to(flat)
    (flat / "b").symlink_to("a")
    (flat / "c").symlink_to("b")
    (flat / "a" / "again").symlink_to(flat / "a")
    assert len(list_images(flat)) == 60
    (flat / "a" / "link.png").symlink_to(flat / "000.png")
    (flat / "a" / "hard.png").hardlink_to(flat / "001.png")
    (tmp_path / "far").mkdir()
    paint(tmp_path / "far" / "x.png")
    for name in ("0far", "1far"):
        (flat / name).symlink_to(tmp_path / "far")
    with pytest.warns(UserWarning, match="photos: 2 names are links"):
        images = list_images(flat)
    assert images == sorted([*(f"{i:03d}.png" for i in range(60)), "0far/x.png"])


def test_a_folder_that_cannot_be_read_is_named(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flat / "closed").mkdir()
    (flat / "lost+found").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.rstrip("/").endswith(("closed", "lost+found")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"the folder .*photos/closed/ cannot be read \(Permission denied\)"):
        folder(flat).setup()


def test_names_that_are_not_utf8_are_read_and_logged(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in flat.iterdir():
        os.rename(file, os.path.join(os.fsencode(flat), b"caf\xe9_" + os.fsencode(file.name)))
    with open(os.path.join(os.fsencode(flat), b"bad\xfe.png"), "wb") as bad:
        bad.write(b"not an image")
    data = folder(flat, batch_size=1)
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert sorted(chain.from_iterable(map(ids, loaders))) == list(range(60))
    assert "bad\\udcfe.png not an image" in " ".join(caplog.text.split())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_odd_files_are_skipped_at_once_and_named(flat: Path, tmp_path: Path) -> None:
    test = flat / "test"
    paint(test / "good.png")
    os.mkfifo(test / "pipe.png")
    (test / "zero.png").symlink_to("/dev/zero")
    (test / "lost.png").symlink_to("nowhere")
    (test / "loop.png").symlink_to("loop.png")
    with open(test / "sparse.png", "wb") as file:
        file.truncate(20 * 10**9)
    Image.new("1", (50, 30)).save(test / "large.png")
    Path(os.fsdecode(bytes(test) + b"/\xff\xfe.png")).write_bytes(b"broken")
    shutil.copy(test / "good.png", os.fsdecode(bytes(test) + b"/\xfe.png"))
    run = tmp_path / "run"
    model = Reader()
    with pytest.warns(UserWarning, match="skipped: 7 test"):
        trainer(run).test(model, folder(flat, max_pixels=1000))
    lines = [line.split("\t") for line in (run / "skipped_images.log").read_text().splitlines()]
    reasons = {line[1].rsplit("/", 1)[-1]: line[2] for line in lines}
    assert reasons["\\udcff\\udcfe.png"].startswith("not an image")
    assert "a named pipe" in reasons["pipe.png"]
    assert "a device" in reasons["zero.png"]
    assert "No such file" in reasons["lost.png"]
    assert "symbolic links" in reasons["loop.png"]
    assert "20.0 GB" in reasons["sparse.png"]
    assert reasons["large.png"] == "50 x 30 pixels, more than 1,000 in all (max_pixels)"
    assert [name for batch in folder(flat).test_dataloader() for name in batch["name"]] == [
        "good.png",
        "large.png",
        "\\udcfe.png",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_without_one_readable_image_is_refused(flat: Path, workers: int) -> None:
    for i in range(9):
        (flat / "val").mkdir(exist_ok=True)
        (flat / "val" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"^not one image can be read") as info:
        list(folder(flat, num_workers=workers).val_dataloader())
    assert "\n" not in str(info.value)
    for path in flat.glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"^no readable image among") as info:
        list(folder(flat, num_workers=workers).train_dataloader())
    assert "\n" not in str(info.value)
