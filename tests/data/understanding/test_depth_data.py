"""Depth maps from files: NYUv2's layout, plain folders, units, and what is broken."""

import numpy as np
import pytest
import torch
from PIL import Image

from uniflow.data import DepthFolder, NYUv2
from uniflow.data.errors import DataError


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def ramp(height=48, width=64, farthest=8000):
    """Millimetres that grow from left to right; the first column is not measured."""
    return np.tile(np.linspace(0, farthest, width).astype(np.uint16), (height, 1))


def nyu(root):
    """The layout of BTS: lists, `sync` and `official_splits/test`; paths with and without a slash in front."""
    lists = {
        "train": ("sync", "/room_1/rgb_{}.jpg /room_1/sync_depth_{}.png 518.8579", range(6)),
        "test": ("official_splits/test", "bathroom/rgb_{}.jpg bathroom/sync_depth_{}.png 518.8579", range(2)),
    }
    for split, (folder, line, numbers) in lists.items():
        lines = [line.replace("{}", str(number)) for number in numbers]
        (root / folder).mkdir(parents=True)
        (root / f"nyudepthv2_{split}_files_with_gt.txt").write_text("\n".join(lines) + "\n")
        for words in (entry.split() for entry in lines):
            write(root / folder / words[0].lstrip("/"), np.zeros((48, 64, 3), dtype=np.uint8))
            write(root / folder / words[1].lstrip("/"), ramp())
    return root


def module(cls, root, **settings):
    data = cls(str(root), **({"size": 48, "batch_size": 2, "num_workers": 0, "val_fraction": 0.4} | settings))
    data.setup()
    return data


def test_nyu_is_read_in_metres(tmp_path):
    data = module(NYUv2, nyu(tmp_path))
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (1, 3, 48, 64)
    assert batch["depth"].dtype == torch.float32
    torch.testing.assert_close(batch["depth"][0], torch.from_numpy(ramp().astype(np.float32)) / 1000)
    assert batch["depth"][0, 0, 0] == 0
    assert len(data.pairs()["train"]) + len(data.pairs()["val"]) == 6
    halved = next(iter(module(NYUv2, tmp_path, depth_scale=2000.0).test_dataloader()))
    torch.testing.assert_close(halved["depth"], batch["depth"] / 2)
    assert data.crops() != module(NYUv2, tmp_path, depth_scale=2000.0).crops()


def test_training_crops_keep_depths_as_they_were_measured(tmp_path):
    """No value is mixed: neither of two depths, nor with what is not measured; zooming in does not bring it nearer."""
    batch = next(iter(module(NYUv2, nyu(tmp_path), scale=(0.2, 0.5)).train_dataloader()))
    assert batch["image"].shape == (2, 3, 48, 48)
    known = torch.from_numpy(ramp().astype(np.float32)) / 1000
    assert torch.isin(batch["depth"], known).all()


@pytest.mark.parametrize("size", [(40, 56), (48, 48)])
def test_training_crops_of_any_shape(tmp_path, size):
    batch = next(iter(module(NYUv2, nyu(tmp_path), buckets=[size]).train_dataloader()))
    assert tuple(batch["depth"].shape[1:]) == size


def test_a_plain_folder(tmp_path):
    for split in ("train", "val", "test"):
        for number in range(2):
            write(tmp_path / "images" / split / f"{number}.png", np.zeros((48, 64, 3), dtype=np.uint8))
            write(tmp_path / "depth" / split / f"{number}.png", ramp())
    data = module(DepthFolder, tmp_path)
    assert [len(data.pairs()[split]) for split in ("train", "val", "test")] == [2, 2, 2]
    assert float(next(iter(data.val_dataloader()))["depth"].max()) == 8


BROKEN = {
    "8 bits": (np.full((48, 64), 7, dtype=np.uint8), "a depth map must be a 16-bit grey PNG, this one has mode L"),
    "nothing": (np.zeros((48, 64), dtype=np.uint16), "no pixel is measured: all are 0"),
    "size": (ramp(40, 64), "40 x 64 pixels, its image"),
    "unit": (ramp(farthest=60000), "half of it is beyond 30[0-9]{3} m: is depth_scale 1 right"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_depth_is_named(tmp_path, case):
    values, message = BROKEN[case]
    settings = {"depth_scale": 1.0} if case == "unit" else {}
    write(nyu(tmp_path) / "official_splits/test/bathroom/sync_depth_0.png", values)
    with pytest.raises(DataError, match=f"sync_depth_0.png: {message}"):
        list(module(NYUv2, tmp_path, broken="refuse", **settings).test_dataloader())
    if case != "unit":
        assert len(list(module(NYUv2, tmp_path).test_dataloader())) == 1


def test_lists_that_are_wrong_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"there is no list .*nyudepthv2_train_files_with_gt.txt of images and depth"):
        module(NYUv2, tmp_path)
    nyu(tmp_path)
    (tmp_path / "mine.txt").write_text("bathroom/rgb_0.jpg\n")
    with pytest.raises(ValueError, match=r"mine\.txt, line 1: must be IMAGE DEPTH, got 'bathroom/rgb_0.jpg'"):
        module(NYUv2, tmp_path, test_list="mine.txt")
    with pytest.raises(ValueError, match="depth_scale must be a finite number > 0, not 0"):
        module(NYUv2, tmp_path, depth_scale=0)
    with pytest.raises(ValueError, match=r"test_fraction must be in \[0, 1\)"):
        module(DepthFolder, tmp_path, test_fraction=1.5)


def test_folders_of_the_lists_can_be_changed(tmp_path):
    nyu(tmp_path)
    (tmp_path / "sync").rename(tmp_path / "elsewhere")
    (tmp_path / "official_splits").rename(tmp_path / "other")
    (tmp_path / "nyudepthv2_train_files_with_gt.txt").rename(tmp_path / "train.txt")
    data = module(NYUv2, tmp_path, train_folder="elsewhere", test_folder="other/test", train_list="train.txt")
    assert next(iter(data.train_dataloader()))["depth"].max() > 0
    assert len(list(data.test_dataloader())) == 2
