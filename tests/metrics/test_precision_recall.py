"""Precision, recall and the inception score: against torch-fidelity, and where the answer is known."""

import pytest
import torch

from uniflow.metrics import inception_score, precision_recall


def draw(count, seed, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_are_whole_and_distant_ones_apart():
    real = draw(40, 0)
    assert precision_recall(real, real.clone()) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)


def test_one_image_repeated_is_precise_and_recalls_little():
    real = draw(200, 0)
    same = real[:1] + 1e-3 * draw(200, 1)
    precision, recall = precision_recall(same, real)
    assert precision == 1
    assert recall < 0.05
    assert precision_recall(real, same) == (recall, precision)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_they_are_those_of_torch_fidelity(neighbours):
    module = pytest.importorskip("torch_fidelity.metric_prc")
    made, real = 0.7 * draw(600, 1) + 0.2, draw(530, 0)
    options = {"prc_neighborhood": neighbours, "prc_batch_size": 100, "save_cpu_ram": False, "verbose": False}
    expected = module.prc_features_to_metric(made, real, **options)
    found = precision_recall(made, real, neighbours)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=2e-3)
    assert 0 < found[0] < 1


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="images must be at least 4, not 3"):
        precision_recall(draw(3, 0), draw(9, 1))
    with pytest.raises(ValueError, match="images must be at least 10, not 9"):
        inception_score(draw(9, 0))


def test_the_inception_score_is_the_number_of_sure_classes_and_1_without_any():
    sure = 1000.0 * torch.eye(5).repeat(200, 1)
    assert inception_score(sure, splits=1) == pytest.approx(5)
    assert inception_score(torch.zeros(100, 5)) == pytest.approx(1)


def test_it_is_that_of_torch_fidelity_up_to_the_order_of_images():
    module = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * draw(1000, 0, width=20)
    whole = module.isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert inception_score(logits, splits=1) == pytest.approx(whole, rel=1e-9)
    parts = module.isc_features_to_metric(logits)["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(parts, rel=0.02)
