"""Masks from files: ADE20K's layout, plain folders, colours, and every kind of broken sample."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from uniflow.data import ADE20K, MaskFolder
from uniflow.data.errors import DataError

SIZE = (40, 48)  # height, width


def write(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = Image.fromarray(np.asarray(values), "L").convert("P")
        image.putdata(np.asarray(values).flatten().tolist())
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    image.save(path)


def picture(number, size=SIZE):
    return np.full((*size, 3), 20 * number + 10, dtype=np.uint8)


def folder(root, masks, splits=("train", "val", "test"), mode=None):
    """A folder with these masks in each split."""
    for split in splits:
        for number, mask in enumerate(masks):
            write(root / "images" / split / f"{number}.jpg", picture(number, np.asarray(mask).shape[:2]))
            write(root / "masks" / split / f"{number}.png", mask, mode)
    return root


def labels(*values):
    return np.tile(np.array(values, dtype=np.uint8).repeat(SIZE[1] // len(values)), (SIZE[0], 1))


def module(root, cls=MaskFolder, **settings):
    defaults = {"num_classes": 4} if cls is MaskFolder else {}
    data = cls(str(root), **(defaults | {"size": 32, "batch_size": 2, "num_workers": 0} | settings))
    data.setup()
    return data


def masks(data):
    return [batch["mask"] for batch in data.test_dataloader()]


@pytest.mark.parametrize("mode", [None, "P"])
def test_masks_of_mode_l_and_p_keep_their_labels(tmp_path, mode):
    (mask,) = masks(module(folder(tmp_path, [labels(0, 1, 3, 255)], mode=mode)))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask[0], torch.from_numpy(labels(0, 1, 3, 255)))


def test_training_crops_masks_with_their_images(tmp_path):
    data = module(folder(tmp_path, [labels(0, 1, 2)] * 4))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["mask"].shape == (2, 32, 32)
    assert set(batch["mask"].unique().tolist()) <= {0, 1, 2}


def test_whole_images_are_judged_at_the_masks_size_or_the_square_in_batches(tmp_path):
    root = folder(tmp_path, [labels(0, 1)] * 4)
    whole = list(module(root).test_dataloader())
    assert [tuple(batch["image"].shape) for batch in whole] == [(1, 3, 32, 38)] * 4
    assert [tuple(batch["mask"].shape) for batch in whole] == [(1, *SIZE)] * 4
    assert whole[0]["name"] == ["test/0.jpg"]
    square = next(iter(module(root, evaluate="crop").test_dataloader()))
    assert square["image"].shape == (2, 3, 32, 32)
    assert square["mask"].shape == (2, 32, 32)
    assert module(root).crops() != module(root, evaluate="crop").crops()


def ade20k(root):
    """Each raw value from 0 to 150, in two training images and one validation image."""
    every = np.arange(151, dtype=np.uint8).repeat(16)[: 151 * 16].reshape(151, 16)
    for name, numbers in (("training", (1, 2)), ("validation", (3,))):
        for number in numbers:
            write(root / "images" / name / f"ADE_{number}.jpg", picture(number, (151, 16)))
            write(root / "annotations" / name / f"ADE_{number}.png", every)
    return root


def test_ade20k_reduces_its_labels_exactly_once(tmp_path):
    """Raw 0 is ignored, raw k is class k - 1, and no class is lost: the same through head and scores."""
    from uniflow.core.specs import FeatureSpec
    from uniflow.heads import LinearSegmentation

    data = module(ade20k(tmp_path), ADE20K, val_fraction=0.5)
    (batch,) = data.test_dataloader()
    column = batch["mask"][0, :, 0].tolist()
    assert column == [255, *range(150)]
    head = LinearSegmentation(FeatureSpec(4, 8, 1, 0, 64), 150)
    head.check_data(data)
    target = head.target(batch)
    batch["image"] = torch.zeros(1, 3, *target.shape[1:])
    right = torch.nn.functional.one_hot(target.clamp(max=149), 150).movedim(-1, 1).float()
    metrics = head.metrics()
    head.update_metrics(metrics, right, batch)
    assert metrics.compute()["miou"] == 1
    assert int(metrics["scores"].confmat.sum()) == 150 * 16  # raw 0 counts nowhere
    assert (metrics["scores"].iou() == 1).all()


def test_ade20k_keeps_the_official_validation_for_the_test(tmp_path):
    data = module(ade20k(tmp_path), ADE20K, val_fraction=0.5)
    names = {split: [pair.name for pair in pairs] for split, pairs in data.pairs().items()}
    assert names["test"] == ["ADE_3.jpg"]
    assert sorted(names["train"] + names["val"]) == ["ADE_1.jpg", "ADE_2.jpg"]
    assert data.mask_names[:2] == ["0", "1"]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{k}\t0.1\t1\t1\t1\tthing{k}, other" for k in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    assert module(tmp_path, ADE20K, val_fraction=0.5).mask_names[0] == "thing1"
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines[:9]))
    with pytest.raises(ValueError, match="must name 150 classes after its first line, it has 8"):
        module(tmp_path, ADE20K)


def test_reduce_labels_and_255_stay_apart(tmp_path):
    root = folder(tmp_path, [labels(0, 1, 3, 255)])
    (mask,) = masks(module(root, num_classes=3, reduce_labels=True))
    assert mask[0, 0, ::12].tolist() == [255, 0, 2, 255]
    (plain,) = masks(module(root))
    assert plain[0, 0, ::12].tolist() == [0, 1, 3, 255]


PALETTE = [(0, 0, 0), (200, 10, 10), (10, 200, 10), (9, 9, 250)]


def test_colours_are_mapped_by_a_palette_and_refused_without(tmp_path):
    colors = np.array(PALETTE, dtype=np.uint8)[labels(3, 0, 2, 1)]
    root = folder(tmp_path, [colors])
    (mask,) = masks(module(root, palette=PALETTE))
    assert torch.equal(mask[0], torch.from_numpy(labels(3, 0, 2, 1)))
    (reduced,) = masks(module(root, palette=PALETTE, num_classes=3, reduce_labels=True))
    assert reduced[0, 0, ::12].tolist() == [2, 255, 1, 0]
    with pytest.raises(DataError, match=r"0.png is coloured \(RGB\), not a mask of labels: give the colour") as caught:
        masks(module(root))
    assert "\n" not in str(caught.value)


def broken(root):
    """Good, another size, a label out of range, no mask, not an image, an unknown mode, no image."""
    folder(root, [labels(0, 1)] * 7)
    for split in ("train", "test"):
        write(root / "masks" / split / "1.png", labels(0, 1)[:20])
        write(root / "masks" / split / "2.png", labels(0, 17))
        (root / "masks" / split / "3.png").unlink()
        (root / "masks" / split / "4.png").write_bytes(b"no image")
        write(root / "masks" / split / "5.png", np.dstack([labels(0, 1)] * 2))
        (root / "images" / split / "6.jpg").write_bytes(b"")
    return root


REASONS = {
    "masks/test/1.png": "20 x 48 pixels, its image",
    "masks/test/2.png": "label 17 is out of range: labels are 0 to 3, and 255 for no class",
    "masks/test/3.png": "there is no such file",
    "masks/test/4.png": "UnidentifiedImageError",
    "images/test/6.jpg": "the file is empty",
}


def test_broken_samples_are_counted_named_and_skipped(tmp_path):
    from uniflow.data.skipped import SkipLog

    root = broken(tmp_path / "data")
    for split in ("train", "test"):
        (root / "masks" / split / "5.png").unlink()
        (root / "images" / split / "5.jpg").unlink()
    data = module(root)
    data.skip_log = SkipLog(tmp_path / "skipped_images.log")
    data.datasets = {split: data.make_dataset(split) for split in ("train", "val", "test")}
    assert len(masks(data)) == 1
    lines = [line.split("\t") for line in (tmp_path / "skipped_images.log").read_text().splitlines()]
    found = {name.removeprefix(f"{root}/"): reason for _, name, reason in lines}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in found[name], name
    assert data.skip_log.summary().startswith("unreadable images skipped: 5 test; named in")
    batch = next(iter(data.train_dataloader()))  # training takes the next one that can be read
    assert (batch["image"] == batch["image"][0]).all()


def test_broken_samples_can_be_refused(tmp_path):
    with pytest.raises(DataError, match=r"1\.png: 20 x 48 pixels, .*; repair or remove it, or set broken: skip"):
        masks(module(broken(tmp_path), broken="refuse"))


def test_splits_by_hash_do_not_overlap_and_stay(tmp_path):
    for number in range(40):
        write(tmp_path / "images" / f"{number}.jpg", picture(1))
        write(tmp_path / "masks" / f"{number}.png", labels(0, 1))
    data = module(tmp_path, val_fraction=0.2, test_fraction=0.2)
    names = {split: {pair.name for pair in pairs} for split, pairs in data.pairs().items()}
    assert sum(map(len, names.values())) == 40 == len(set().union(*names.values()))
    assert 2 <= len(names["val"]) <= 16
    assert 2 <= len(names["test"]) <= 16
    more = module(tmp_path, val_fraction=0.2, test_fraction=0.4)
    assert names["test"] < {pair.name for pair in more.pairs()["test"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be 2 to 255, not 1"),
        ({"num_classes": 256}, "num_classes must be 2 to 255, not 256"),
        ({"palette": PALETTE[:2]}, "palette has 2 colours, must have 4"),
        ({"names": ["a"]}, "there are 1 names for 4 classes"),
        ({"test_fraction": 1.0}, r"test_fraction must be in \[0, 1\)"),
        ({"val_fraction": -0.1}, r"val_fraction must be in \[0, 1\)"),
        ({"evaluate": "some"}, "evaluate must be whole or crop, not 'some'"),
        ({"broken": "some"}, "broken must be skip or refuse, not 'some'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        module(folder(tmp_path, [labels(0, 1)]), **settings)


def test_missing_folders_and_empty_splits_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*masks"):
        module(tmp_path)
    folder(tmp_path / "a", [labels(0, 1)], splits=["train", "test"])
    with pytest.raises(ValueError, match=r"no images for the val split; raise val_fraction \(it is 0.05\)"):
        module(tmp_path / "a")
    write(tmp_path / "a" / "images" / "loose.jpg", picture(1))
    with pytest.raises(ValueError, match=r"loose\.jpg is in none of the folders train, val and test"):
        module(tmp_path / "a")


def test_by_the_command_line(tmp_path, uniflow):
    """`uniflow fit` and `test` on a folder, whole images, workers, and a broken sample that is named in the run."""
    root = folder(tmp_path / "data", [labels(0, 1, 3)] * 4)
    (root / "masks" / "test" / "1.png").unlink()
    options = ["--model", "SegmentationTask", "--model.source", "EncoderSource", "--model.source.encoder", "SceneViT"]
    options += ["--model.heads+", "LinearSegmentation", "--model.heads.num_classes", "4", "--data", "MaskFolder"]
    options += ["--data.root", str(root), "--data.num_classes", "4", "--data.size", "32", "--data.batch_size", "2"]
    options += ["--data.num_workers", "1", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--ema", "null"]
    run = tmp_path / "run"
    assert uniflow("fit", *options, "--run", str(run)).code == 0
    assert uniflow("test", "-c", str(run / "config.yaml"), "--ckpt_path", "last").code == 0
    results = json.loads((run / "test_results.json").read_text())
    assert 0 <= results["test/miou"] <= 1
    assert results["protocol/settings"]["data"]["evaluate"] == "whole"
    assert "masks/test/1.png\tthere is no such file" in (run / "skipped_images.log").read_text()
