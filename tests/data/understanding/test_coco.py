"""COCO's layout: ids with gaps, crowds, masks, broken annotations and images; boxes move with the pixels."""

import numpy as np
import pytest
import torch
from coco_fixtures import BOX, CATEGORIES, HEIGHT, WIDTH, annotation, write_coco
from faster_coco_eval.core import mask as coder

from uniflow.data.base import SPLITS
from uniflow.data.errors import DataError
from uniflow.data.understanding.boxes import GREY, JointFit
from uniflow.data.understanding.coco import COCODetection


@pytest.fixture
def root(tmp_path):
    write_coco(
        tmp_path, [annotation(5), annotation(6, image=2, category=90), annotation(7, image=2, category=1, iscrowd=1)]
    )
    write_coco(tmp_path, [annotation(5), annotation(6, category=1, iscrowd=1)], images=[1, 2], name="val2017")
    return tmp_path


def coco(root, size=64, **settings):
    return COCODetection(str(root), size, **({"val_fraction": 0.3, "num_workers": 0, "batch_size": 2} | settings))


def sample(root, number=0, split="test", **settings):
    return coco(root, **settings).make_dataset(split)[number]


def white(image):
    """The box around the white pixels."""
    rows, columns = (image[0] > 200).any(1).nonzero()[:, 0], (image[0] > 200).any(0).nonzero()[:, 0]
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


def test_ids_with_gaps_become_labels_without_and_back(root):
    """torchvision issue 1141: 80 classes numbered up to 90."""
    data = coco(root)
    data.setup()
    assert data.category_ids == [1, 13, 90]
    assert data.class_names == ["person", "stop sign", "toothbrush"]
    first = data.datasets["test"][0]
    assert first["box_labels"].tolist() == [1, 0]
    assert first["box_labels"].dtype == torch.int64
    [batch] = data.test_dataloader()
    found = [
        {"boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.5)}
        for boxes, labels in zip(batch["boxes"], batch["box_labels"], strict=True)
    ]
    results = data.results(batch, found)
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [(1, 13, 0.5), (1, 1, 0.5)]
    assert results[0]["bbox"] == pytest.approx(BOX, abs=0.4)  # in pixels of the file again


def test_a_batch_says_what_the_metric_needs(root):
    data = coco(root)
    [batch] = data.test_dataloader()
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["box_crowd"][0].tolist() == [0, 1]
    assert batch["box_area"][0].tolist() == [105, 106]
    assert batch["image_id"].tolist() == [1, 2]
    assert batch["name"] == ["000000000001.png", "000000000002.png"]
    assert batch["image_scale"].tolist() == pytest.approx([64 / 60] * 2, rel=0.01)
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(2, 4), (0, 4)]  # the second image has none


def test_validation_is_a_part_of_training_and_images_without_boxes_stay(root):
    data = coco(root)
    data.setup()
    names = {split: [image.name for image in data.datasets[split].images] for split in SPLITS}
    assert not set(names["train"]) & set(names["val"])
    assert len(names["train"]) + len(names["val"]) == 8
    assert any(len(data.datasets["train"][i]["boxes"]) == 0 for i in range(len(names["train"])))
    larger = coco(root, val_fraction=0.6)
    larger.setup()
    assert set(names["val"]) < {image.name for image in larger.datasets["val"].images}


@pytest.mark.parametrize("resize", ["pad", "crop"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_and_masks_move_with_the_pixels(root, resize, split):
    settings = {"resize": resize, "masks": True, "jitter": (0.6, 1.8), "scale": (0.4, 1.0)}
    data = coco(root, **settings)
    dataset = data.make_dataset(split)
    seen = set()
    for number in range(len(dataset)):
        given = dataset[number]
        assert given["image"].shape == (3, 64, 64)
        assert given["box_masks"].shape == (len(given["boxes"]), 64, 64)
        for box, mask in zip(given["boxes"].tolist(), given["box_masks"], strict=True):
            assert box == pytest.approx(white(given["image"]), abs=1.01)
            assert white(mask[None] * 255) == pytest.approx(box, abs=1.01)
            seen.add(tuple(box))
    assert seen


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_flip_moves_boxes(flip):
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    fitted = JointFit(40, flip=flip)({"image": image, "boxes": [[4, 2, 10, 12]]}, torch.Generator().manual_seed(0))
    assert fitted["boxes"].tolist() == [[30, 2, 36, 12] if flip else [4, 2, 10, 12]]
    assert (fitted["image"][:, 20:] == GREY).all()
    assert (fitted["image"][:, :20] == 0).all()


def test_settings_change_the_samples(root):
    plain = sample(root)
    assert not torch.equal(sample(root, short_side=32)["image"], plain["image"])
    assert sample(root, short_side=32)["image_scale"] == pytest.approx(32 / 40)
    assert not torch.equal(sample(root, resize="crop")["image"], plain["image"])
    assert "image_scale" not in sample(root, resize="crop")
    train = {"split": "train", "flip": 0.0}
    still = sample(root, **train)
    assert not torch.equal(sample(root, split="train", flip=1.0)["image"], still["image"])
    assert not torch.equal(sample(root, jitter=(0.4, 0.5), **train)["image"], still["image"])
    crop = sample(root, resize="crop", scale=(1.0, 1.0), **train)
    assert not torch.equal(sample(root, resize="crop", scale=(0.2, 0.3), **train)["image"], crop["image"])
    assert "box_masks" not in plain


def test_masks_of_all_three_forms_are_the_same(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:28, 12:42] = 1
    encoded = coder.encode(np.asfortranarray(mask))
    compressed = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    ends = np.flatnonzero(np.diff(mask.flatten(order="F"))) + 1
    plain = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, mask.size]).tolist()}
    three = [annotation(1), annotation(2, segmentation=compressed), annotation(3, segmentation=plain, iscrowd=1)]
    for name in ("train2017", "val2017"):
        write_coco(tmp_path, three, name=name)
    masks = sample(tmp_path, masks=True)["box_masks"]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[1], masks[2])
    assert masks.dtype == torch.bool


def test_boxes_are_cut_to_the_image_and_empty_ones_dropped_and_counted(root):
    boxes = {10: [50, 30, 20, 20], 11: [70, 5, 10, 10], 12: [5, 5, 0, 10], 13: [5, 5, -3, 10]}
    write_coco(root, [*(annotation(i, box=b) for i, b in boxes.items()), annotation(14, image=77)], [1], name="val2017")
    with pytest.warns(UserWarning, match="left out") as caught:
        dataset = coco(root).make_dataset("test")
    texts = [str(warning.message) for warning in caught]
    assert any("3 boxes without area inside of their image are left out: annotation 11, 12, 13" in t for t in texts)
    assert any("1 boxes of images that are not listed are left out: annotation 14" in t for t in texts)
    assert dataset.images[0].boxes.tolist() == [[50, 30, 60, 40]]


def test_broken_images_are_skipped_and_named(root, caplog):
    (root / "val2017" / "000000000001.png").unlink()
    data = coco(root)
    [batch] = data.test_dataloader()
    assert batch["name"] == ["000000000002.png"]
    assert data.skip_log.counts() == {"test": 1}
    assert "000000000001.png\tcannot be opened" in caplog.text
    write_coco(root, images=[1], name="val2017", sizes=(WIDTH, HEIGHT))
    assert sample(root) is None
    assert "40 x 60 pixels, but 60 x 40 in the annotations" in caplog.text
    wrong = {"size": [3, 3], "counts": [0, 9]}
    write_coco(root, [annotation(1, segmentation=wrong)], images=[1], name="val2017")
    assert sample(root, masks=True) is None
    assert "the segmentation of object 0 of 000000000001.png cannot be decoded for 40 x 60 pixels" in caplog.text


@pytest.mark.parametrize(
    ("annotations", "settings", "line"),
    [
        ([annotation(3, category=12)], {}, r"annotation 3 has category_id 12, which the file's categories do not list"),
        ([annotation(3, segmentation=[])], {"masks": True}, "annotation 3 has no segmentation, but masks are asked"),
        ([{"id": 3}], {}, r"is not an annotation file of COCO's form, .* \(KeyError: 'image_id'\)"),
    ],
)
def test_broken_annotations_are_refused_in_one_line(root, annotations, settings, line):
    write_coco(root, annotations, name="val2017")
    with pytest.raises(DataError, match=line) as error:
        coco(root, **settings).make_dataset("test")
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit_are_refused(root):
    with pytest.raises(DataError, match=r"annotations .*none\.json cannot be read \(No such file"):
        coco(root, test_annotations="none.json").make_dataset("test")
    (root / "broken.json").write_text('{"images": [')
    with pytest.raises(DataError, match="is not an annotation file of COCO's form"):
        coco(root, test_annotations="broken.json").make_dataset("test")
    with pytest.raises(DataError, match="there is no folder"):
        coco(root, test_images="none").make_dataset("test")
    with pytest.raises(DataError, match=r"no images for the val split; raise val_fraction"):
        coco(root, val_fraction=1e-6).make_dataset("val")
    write_coco(root, categories=CATEGORIES[:2], name="val2017")
    with pytest.raises(DataError, match="has other categories than"):
        coco(root).make_dataset("test")
    write_coco(root, categories=[*CATEGORIES, CATEGORIES[0]], name="val2017")
    with pytest.raises(DataError, match="two categories with the same id"):
        coco(root).make_dataset("test")


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"short_side": 65}, {"jitter": (0, 1)}, {"flip": 2}, {"val_fraction": 0.0}, {"resize": "squeeze"}],
)
def test_settings_out_of_range_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings)) if "flip" not in settings else "flip"):
        coco(tmp_path, **settings)


def test_results_need_images_that_were_not_cropped(root):
    with pytest.raises(ValueError, match="resize: pad"):
        coco(root, resize="crop").results({"image_id": torch.zeros(1)}, [])
