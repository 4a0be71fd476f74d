"""Depth scores of closed forms, and everything that a protocol changes."""

import math

import pytest
import torch

from uniflow.metrics import fingerprint
from uniflow.metrics.depth import DepthProtocol, DepthScores


def scores(prediction, truth, **settings):
    metric = DepthScores(DepthProtocol(**settings))
    metric.update(prediction, truth)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.fixture
def truth():
    return 1 + 8 * torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.3, 1.6, 2.0, 0.7])
@pytest.mark.parametrize("mean_over", ["images", "pixels"])
def test_a_wrong_scale_in_closed_form(truth, factor, mean_over):
    found = scores(truth * factor, truth, max_depth=100.0, mean_over=mean_over)
    assert found["abs_rel"] == pytest.approx(abs(factor - 1), abs=1e-6)
    assert found["log10"] == pytest.approx(abs(math.log10(factor)), abs=1e-6)
    ratio = max(factor, 1 / factor)
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == [float(ratio < 1.25**k) for k in (1, 2, 3)]
    squares = truth.double().square().mean(dim=(1, 2))
    rmse = squares.sqrt().mean() if mean_over == "images" else squares.mean().sqrt()
    assert found["rmse"] == pytest.approx(float(rmse) * abs(factor - 1), rel=1e-5, abs=1e-6)


def test_a_constant_error_in_metres(truth):
    assert scores(truth + 0.5, truth, max_depth=100.0)["rmse"] == pytest.approx(0.5, rel=1e-5)


def test_pixels_without_a_measurement_count_nowhere(truth):
    holes, wrong = truth.clone(), truth.clone()
    holes[:, ::2], wrong[:, ::2] = 0.0, 77.0
    holes[:, 1, 0], wrong[:, 1, 0] = math.nan, 77.0
    holes[:, 1, 1], wrong[:, 1, 1] = math.inf, 77.0
    assert scores(wrong, holes)["rmse"] == pytest.approx(0.0, abs=1e-6)
    holes[1] = 0.0  # an image without any
    assert scores(wrong, holes)["delta1"] == 1
    assert all(math.isnan(value) for value in scores(wrong, torch.zeros_like(holes)).values())


def test_a_prediction_that_is_not_a_number_is_not_hidden(truth):
    broken = truth.clone()
    broken[0, 0, 0] = math.nan
    assert math.isnan(scores(broken, truth)["rmse"])


def test_images_or_pixels(truth):
    truth[0, :, 4:] = 0.0
    error = torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1)
    images = scores(truth + error, truth, max_depth=100.0)
    pixels = scores(truth + error, truth, max_depth=100.0, mean_over="pixels")
    assert images["rmse"] == pytest.approx(4 / 3, rel=1e-5)
    measured = torch.tensor([24 * 4, 24 * 32, 24 * 32.0])
    assert pixels["rmse"] == pytest.approx(math.sqrt(float((measured * error.flatten() ** 2).sum() / measured.sum())))


def test_alignment_forgives_what_it_says(truth):
    assert scores(3 * truth, truth, alignment="median")["rmse"] == pytest.approx(0.0, abs=1e-5)
    assert scores(3 * truth - 1, truth, alignment="median")["rmse"] > 0.1
    assert scores(3 * truth - 1, truth, alignment="scale_shift")["rmse"] == pytest.approx(0.0, abs=1e-5)
    flat = torch.ones_like(truth)
    deviation = truth.double().var(dim=(1, 2), correction=0).sqrt().mean()
    assert scores(flat, truth, alignment="scale_shift")["rmse"] == pytest.approx(float(deviation), rel=1e-5)


def test_crop_and_range_move_the_numbers_of_one_prediction_and_the_fingerprint():
    """One prediction has an RMSE of .43 or of .36, and nobody can tell without the protocol."""
    truth = torch.linspace(1, 15, 640).repeat(1, 480, 1)
    prediction = 1.1 * truth - torch.linspace(0, 0.5, 480).view(1, 480, 1)
    found = {}
    for crop in ("none", "eigen"):
        for farthest in (5.0, 10.0, 20.0):
            settings = {"crop": crop, "max_depth": farthest}
            rmse = round(scores(prediction, truth, **settings)["rmse"], 3)
            found[rmse] = fingerprint(DepthProtocol(**settings).settings())
    assert len(found) == len(set(found.values())) == 6


def test_every_field_is_in_the_fingerprint():
    changes = {"min_depth": 0.1, "max_depth": 80.0, "crop": "eigen", "mean_over": "pixels"}
    changes |= {"alignment": "median", "flip": True}
    prints = [fingerprint(DepthProtocol(**({name: value} if name else {})).settings()) for name, value in
              [(None, None), *changes.items()]]  # fmt: skip
    assert len(set(prints)) == 1 + len(changes)
    assert DepthProtocol().settings().keys() == {"format", "units", *changes}


def test_the_eigen_crop_is_that_of_nyu():
    judged = DepthProtocol(crop="eigen").judged(torch.ones(1, 480, 640))
    assert int(judged.sum()) == 426 * 560
    rows, columns = judged[0].any(dim=1).nonzero().flatten(), judged[0].any(dim=0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (45, 470, 41, 600)
    with pytest.raises(ValueError, match="have 64 x 64; evaluate whole images, or set crop: none"):
        DepthProtocol(crop="eigen").judged(torch.ones(1, 64, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_depth": 0.0}, "DepthProtocol.min_depth must be a finite number > 0, got 0.0"),
        ({"min_depth": 11.0}, "min_depth 11.0 must be below max_depth 10.0"),
        ({"crop": "garg"}, "DepthProtocol.crop must be one of none, eigen, got 'garg'"),
        ({"mean_over": "x"}, "DepthProtocol.mean_over must be one of"),
        ({"alignment": "x"}, "DepthProtocol.alignment must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DepthProtocol(**settings)
