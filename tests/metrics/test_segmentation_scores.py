"""Segmentation scores of predictions made by hand."""

import math

import pytest
import torch
from sklearn.metrics import jaccard_score

from uniflow.metrics.segmentation import SegmentationScores


def scores(prediction, mask, num_classes=3):
    metric = SegmentationScores(num_classes)
    metric.update(torch.tensor(prediction), torch.tensor(mask))
    return {name: float(value) for name, value in metric.compute().items()}, metric


def test_a_prediction_by_hand():
    found, metric = scores([[0, 0, 1, 1], [2, 2, 1, 0]], [[0, 0, 0, 1], [2, 1, 1, 0]])
    assert metric.iou().tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 2])
    assert found["miou"] == pytest.approx((3 / 4 + 2 / 4 + 1 / 2) / 3)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    assert found["pixel_accuracy"] == pytest.approx(6 / 8)


def test_ignored_pixels_count_nowhere():
    """Neither as right nor as wrong, nor as a prediction of the class that stands there."""
    found, metric = scores([[0, 1, 2, 2]], [[0, 1, 255, 255]])
    assert found == {"miou": 1.0, "mean_accuracy": 1.0, "pixel_accuracy": 1.0}
    assert math.isnan(metric.iou()[2])
    nothing, _ = scores([[0, 1]], [[255, 255]])
    assert all(math.isnan(value) for value in nothing.values())


def test_absent_classes_are_left_out_and_a_class_predicted_in_vain_is_not():
    found, metric = scores([[0, 1, 1, 3]], [[0, 1, 1, 1]], num_classes=5)
    iou = metric.iou().tolist()
    assert iou[:2] == pytest.approx([1, 2 / 3])
    assert iou[3] == 0
    assert math.isnan(iou[2])
    assert math.isnan(iou[4])
    assert found["miou"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx((1 + 2 / 3) / 2)  # class 3 has no pixel to be right at
    assert [row["pixels"] for row in metric.rows()] == [1, 3, 0, 0, 0]
    assert [row["class"] for row in metric.rows(list("abcde"))] == list("abcde")


def test_over_the_set_as_scikit_learn_and_not_over_images():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (8, 20, 20), generator=generator)
    truth[:4] = truth[:4] // 3
    noise = torch.rand(truth.shape, generator=generator) < 0.4
    found = torch.where(noise, torch.randint(0, 6, truth.shape, generator=generator), truth)
    metric = SegmentationScores(6)
    for start in range(0, 8, 3):
        metric.update(found[start : start + 3], truth[start : start + 3])
    expected = jaccard_score(truth.flatten(), found.flatten(), average="macro")
    assert float(metric.compute()["miou"]) == pytest.approx(expected)
    images = [jaccard_score(t.flatten(), f.flatten(), average="macro") for t, f in zip(truth, found, strict=True)]
    assert sum(images) / 8 != pytest.approx(expected, abs=1e-3)
