"""Average precision: equal to pycocotools on a hand-made set, defined or nan, the same in two processes."""

import contextlib
import io
import json
import math
import sys

import pytest
import torch
import torch.multiprocessing as mp
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uniflow.metrics.detection import DetectionPrecision

# For each image: true boxes, labels and crowds; then found boxes, labels and scores.
TRUE = [
    ([[10, 10, 50, 60], [60, 20, 90, 45]], [0, 1], [0, 0]),
    ([[5, 5, 25, 25]], [1], [0]),
    ([], [], []),
    ([[0, 0, 120, 110], [30, 30, 90, 90]], [0, 2], [1, 0]),
    ([[100, 100, 230, 240]], [2], [0]),
]
FOUND = [
    ([[12, 11, 50, 58], [61, 22, 88, 47], [0, 0, 30, 30]], [0, 1, 0], [0.9, 0.6, 0.3]),
    ([[6, 6, 27, 24], [5, 5, 25, 25]], [1, 0], [0.8, 0.7]),
    ([[10, 10, 30, 30]], [2], [0.4]),
    ([[2, 2, 40, 40], [30, 32, 88, 93], [60, 60, 100, 100]], [0, 2, 0], [0.95, 0.5, 0.2]),
    ([[110, 90, 225, 235]], [2], [0.75]),
]


def as_batches(true=TRUE, found=FOUND):
    def boxes(values):
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)

    def integers(values):
        return torch.tensor(values, dtype=torch.int64)

    targets = [
        {"boxes": boxes(b), "labels": integers(labels), "iscrowd": integers(crowds)} for b, labels, crowds in true
    ]
    predictions = [
        {"boxes": boxes(b), "labels": integers(labels), "scores": torch.tensor(scores)} for b, labels, scores in found
    ]
    return predictions, targets


def with_masks(items, side=256):
    for item in items:
        item["masks"] = torch.zeros(len(item["boxes"]), side, side, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(item["masks"], item["boxes"].int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
    return items


def wide(box):
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def oracle(max_detections=100):
    """pycocotools on the same boxes."""
    truth = COCO()
    annotations = [
        {"image_id": i, "category_id": label, "bbox": wide(box), "iscrowd": crowd, "area": wide(box)[2] * wide(box)[3]}
        for i, (boxes, labels, crowds) in enumerate(TRUE)
        for box, label, crowd in zip(boxes, labels, crowds, strict=True)
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(TRUE))],
        "categories": [{"id": c} for c in range(3)],
        "annotations": [a | {"id": n + 1} for n, a in enumerate(annotations)],
    }
    results = [
        {"image_id": i, "category_id": label, "bbox": wide(box), "score": score}
        for i, (boxes, labels, scores) in enumerate(FOUND)
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(
        zip(("map", "map_50", "map_75", "map_small", "map_medium", "map_large"), evaluation.stats, strict=False)
    )


def test_it_is_pycocotools_number():
    metric = DetectionPrecision()
    metric.update(*as_batches())
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(oracle(), abs=1e-6)
    assert 0 < values["map"] < values["map_50"] <= 1


@pytest.mark.parametrize("max_detections", [1, 2, 20, 300])
def test_the_number_of_detections_gives_no_minus_one(max_detections):
    """torchmetrics issue 2560: with other numbers than 100 the mean precision was -1."""
    metric = DetectionPrecision(max_detections)
    metric.update(*as_batches())
    value = metric.compute()["map"].item()
    if max_detections >= 20:
        assert value == pytest.approx(oracle()["map"], abs=1e-6)
    else:
        assert 0 < value <= oracle()["map"] + 1e-6


def test_the_number_of_detections_counts():
    few, many = DetectionPrecision(1), DetectionPrecision(100)
    true = [([[0, 0, 20, 20], [30, 30, 60, 60]], [0, 0], [0, 0])]
    found = [([[0, 0, 20, 20], [30, 30, 60, 60]], [0, 0], [0.9, 0.8])]
    for metric in (few, many):
        metric.update(*as_batches(true, found))
    assert many.compute()["map"] == 1
    assert few.compute()["map"] < 0.6


def test_what_is_not_defined_is_nan_or_left_out():
    metric = DetectionPrecision(masks=True)
    found, true = as_batches([([], [], [])], [([[1, 1, 9, 9]], [0], [0.5])])
    metric.update(with_masks(found), with_masks(true))
    values = metric.compute()
    assert all(math.isnan(values[name]) for name in ("map", "map_50", "map_75", "mask_map"))
    assert not any("small" in name for name in values)


def test_a_crowd_is_neither_right_nor_wrong():
    true = [([[0, 0, 20, 20], [50, 50, 120, 120]], [0, 0], [0, 1])]
    found = [([[55, 55, 80, 80], [0, 0, 20, 20]], [0, 0], [0.9, 0.8])]
    metric = DetectionPrecision()
    metric.update(*as_batches(true, found))
    assert metric.compute()["map"] == 1
    plain = DetectionPrecision()
    plain.update(*as_batches([(true[0][0], true[0][1], [0, 0])], found))
    assert plain.compute()["map"] < 1


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs faster-coco-eval: pip install 'uniflow\[detection\]'"):
        DetectionPrecision()


def _process(rank, folder, masks):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = DetectionPrecision(masks=masks)
    own = slice(0, 4) if rank == 0 else slice(4, 5)  # unequal shares
    found, true = as_batches(TRUE[own], FOUND[own])
    metric.update(with_masks(found), with_masks(true))
    values = {name: value.item() for name, value in metric.compute().items()}
    (folder / f"{rank}.json").write_text(json.dumps([values, len(metric.detection_scores)]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("masks", [False, True])
def test_two_processes_with_unequal_shares_give_the_numbers_of_one(tmp_path, masks):
    alone = DetectionPrecision(masks=masks)
    found, true = as_batches()
    alone.update(with_masks(found), with_masks(true))
    expected = {name: value.item() for name, value in alone.compute().items()}
    mp.start_processes(_process, (tmp_path, masks), nprocs=2, start_method="fork")
    for rank, own in ((0, 4), (1, 1)):
        values, kept = json.loads((tmp_path / f"{rank}.json").read_text())
        assert values == pytest.approx(expected, abs=1e-6)
        assert kept == own  # the state is its own again
