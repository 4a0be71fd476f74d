"""The worst images, and sheets with captions."""

import math

import pytest
import torch

from uniflow.pictures.drawing import captioned_sheet, error_map, fit_side, heat_map
from uniflow.pictures.gallery import WorstImages


def feed(order, batch_size, count=3, values=(5.0, 1.0, 3.0, 1.0, 4.0, 2.0)):
    worst = WorstImages(count, ["psnr", "ssim"])
    originals = torch.stack([torch.full((3, 16, 20), 10 * i, dtype=torch.uint8) for i in range(len(values))])
    for batch in torch.tensor(order).split(batch_size):
        rows = [{"image": f"{i}.png", "psnr": values[i], "ssim": -values[i]} for i in batch.tolist()]
        worst.update(rows, originals[batch], originals[batch] / 255 + 0.1)
    return worst


def names(worst, metric):
    return [row["image"] for row in worst.rows(metric)]


def test_the_worst_do_not_depend_on_batches_and_order():
    one = feed(range(6), 6)
    assert names(one, "psnr") == ["1.png", "3.png", "5.png"]
    assert names(one, "ssim") == ["0.png", "4.png", "2.png"]
    for order, batch_size in (([3, 5, 0, 1, 4, 2], 2), (range(5, -1, -1), 1)):
        other = feed(order, batch_size)
        assert names(other, "psnr") == names(one, "psnr")
        assert other.picture().tobytes() == one.picture().tobytes()
    assert feed(range(6), 6, count=2).picture().tobytes() != one.picture().tobytes()


def test_a_picture_that_is_no_number_is_the_worst():
    assert names(feed(range(3), 3, values=(2.0, math.nan, 1.0)), "psnr") == ["1.png", "2.png", "0.png"]


def test_without_pictures_or_numbers():
    assert WorstImages(3, ["psnr"]).picture() is None
    assert feed(range(2), 2, count=8).picture() is not None
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        WorstImages(0, ["psnr"])


def test_heat_maps_get_lighter_all_the_way():
    colours = heat_map(torch.linspace(0, 1, 101).view(1, 1, 101))
    assert colours.shape == (1, 3, 1, 101)
    lightness = (colours * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1).flatten()
    assert (lightness.diff() > 0).all()
    assert (lightness[0], lightness[-1]) == (0, pytest.approx(1))


def test_errors_are_amplified_and_cut():
    original = torch.full((3, 2, 2), 0.5)
    assert error_map(original - 0.1, original, 4).unique().tolist() == pytest.approx([0.4])
    assert error_map(original + 0.4, original, 4).unique().tolist() == [1]


def test_pictures_are_brought_to_a_side():
    picture = torch.rand(3, 20, 30)
    assert fit_side(picture, 100).size == (90, 60)
    assert fit_side(picture, 15).size == (15, 10)
    assert fit_side(torch.rand(3, 1, 900), 30).size == (30, 1)


def test_sheets_have_room_for_all():
    small, large = torch.zeros(3, 50, 50), torch.ones(3, 20, 100)
    sheet = captioned_sheet([[("a", small), ("b\nc", small)], [("d", large)]], side=(50, 100))
    assert sheet.size == (10 + 60 + 60, 10 + (34 + 50 + 10) + (17 + 20 + 10))
    long = captioned_sheet([[("a very long caption / of a picture", small)]], side=50)
    assert long.size == captioned_sheet([[("x", small)]], side=50).size  # cut, not beyond its picture
    odd = "caf\udce9"  # a file name that is no text
    assert captioned_sheet([[(odd, small)]], side=50, title=odd).height > long.height
