"""Image statistics in closed form, and the slices made of them."""

import csv
import math

import pytest
import torch

from uniflow.metrics import (
    STATISTICS,
    Evaluation,
    ReconstructionProtocol,
    image_digests,
    image_statistics,
    slice_means,
    write_table,
)


def grey(luma):
    """(H, W) as a batch of one grey image."""
    return luma.expand(3, -1, -1)[None].clone()


def statistics(image):
    return {name: value.item() for name, value in image_statistics(image).items()}


def test_a_constant_image_is_smooth():
    found = statistics(torch.tensor([0.5, 0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 7, 9))
    luma = 0.299 * 0.5 + 0.587 * 0.25 + 0.114
    expected = {"texture": 0, "smooth": 1, "edges": 0, "chroma": 0.75, "brightness": luma}
    assert tuple(found) == STATISTICS
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_ramp_has_a_gradient_and_no_texture():
    ramp = torch.arange(11) / 40  # .025 a pixel
    for image in (ramp.expand(9, 11), ramp[:, None].expand(11, 9)):
        found = statistics(grey(image))
        assert found["texture"] == pytest.approx(0, abs=1e-6)
        assert (found["smooth"], found["edges"]) == (0, 0)
        assert found["brightness"] == pytest.approx(0.125, abs=1e-6)
    assert statistics(grey(ramp.expand(9, 11) * 0.7))["smooth"] == 1  # .0175 a pixel
    diagonal = (ramp + ramp[:, None]) * 0.7  # that times the root of 2
    assert statistics(grey(diagonal))["smooth"] == 0


def test_a_checkerboard_is_all_texture():
    board = (torch.arange(8)[:, None] + torch.arange(10)) % 2 * 0.5
    # Every neighbour differs by .5.
    expected = {"texture": 2, "smooth": 0, "edges": 1, "chroma": 0, "brightness": 0.25}
    assert statistics(grey(board)) == pytest.approx(expected, abs=1e-6)


def test_steps_of_high_contrast_are_edges():
    step = torch.cat([torch.zeros(6, 5), torch.ones(6, 5)], dim=1)
    # Of the eight inner columns one has the step to its right, and two have a Laplacian of 1.
    expected = {"texture": 0.25, "smooth": 0.875, "edges": 0.125, "chroma": 0, "brightness": 0.5}
    assert statistics(grey(step)) == pytest.approx(expected, abs=1e-6)
    assert statistics(grey(step * 0.31))["edges"] == pytest.approx(0.125)
    assert statistics(grey(step * 0.29))["edges"] == 0


def test_statistics_belong_to_each_image_and_need_three_pixels():
    images = torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    together = image_statistics(images)
    for number in range(5):
        assert statistics(images[number : number + 1]) == {k: v[number].item() for k, v in together.items()}
    with pytest.raises(ValueError, match="at least 3 x 3 pixels"):
        image_statistics(images[..., :2])


def rows(values, **columns):
    return [
        {"image": f"{i}.png", "texture": value, **{name: column[i] for name, column in columns.items()}}
        for i, value in enumerate(values)
    ]


def by_name(found):
    return {row["slice"]: row for row in found}


def test_thirds_and_their_means():
    found = by_name(slice_means(rows([5, 1, 4, 2, 3, 6, 7], psnr=[50, 10, 40, 20, 30, 60, math.inf])))
    assert list(found) == ["all", "texture: lowest third", "texture: highest third"]
    assert found["all"]["count"] == 7
    assert found["texture: lowest third"] == {
        "slice": "texture: lowest third", "where": "texture <= 3", "count": 3, "psnr": 20,
    }  # fmt: skip
    assert found["texture: highest third"]["count"] == 3
    assert found["texture: highest third"]["psnr"] == math.inf


def test_equal_values_stay_together():
    found = by_name(slice_means(rows([0, 0, 0, 0, 1, 2], psnr=[1, 2, 3, 4, 5, 6])))
    assert found["texture: lowest third"]["count"] == 4
    assert found["texture: lowest third"]["psnr"] == 2.5
    assert found["texture: highest third"]["psnr"] == 5.5
    for values in ([0, 0, 0, 0], [0, 1, 1, 1, 1, 2], [3]):  # no third without images of the other
        assert list(by_name(slice_means(rows(values, psnr=values)))) == ["all"]


def test_folders_of_the_first_level():
    table = [{"image": name, "psnr": value} for name, value in (("faces/a.png", 1), ("text/x/b.png", 2), ("c.png", 4))]
    assert [(row["slice"], row["psnr"]) for row in slice_means(table)][1:] == [
        ("folder: .", 4), ("folder: faces", 1), ("folder: text", 2),
    ]  # fmt: skip
    assert [row["slice"] for row in slice_means(table[:1])] == ["all"]


def test_missing_numbers_are_left_out():
    found = slice_means([{"image": "a/1", "psnr": 1.0}, {"image": "a/2", "psnr": 3.0, "lpips": 0.5}, {"image": "b/1"}])
    assert found[0] == {"slice": "all", "where": "", "count": 3, "psnr": 2.0, "lpips": 0.5}
    assert found[2] == {"slice": "folder: b", "where": "", "count": 1}


def test_statistics_are_columns_and_no_results():
    images = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255).byte()
    painted = (images / 255 + 0.05).clamp(0, 1)

    def judged(batch_size, **kwargs):
        evaluation = Evaluation(ReconstructionProtocol(sets=[]), **kwargs)
        for batch, other in zip(images.split(batch_size), painted.split(batch_size), strict=True):
            evaluation.add_originals(batch / 255, image_digests(batch))
            evaluation.add(other)
        return evaluation, evaluation.compute()

    evaluation, results = judged(6)
    assert set(results) == {"psnr", "ssim"}
    assert set(STATISTICS) < set(evaluation.rows[0])
    assert slice_means(judged(4)[0].rows) == [pytest.approx(row, abs=1e-6) for row in slice_means(evaluation.rows)]
    assert set(judged(6, with_sets=False)[0].rows[0]) == {"image", "psnr", "ssim"}


def test_names_that_are_no_text_are_written(tmp_path):
    write_table([{"image": b"caf\xe9.png".decode("utf-8", "surrogateescape"), "psnr": 1}], tmp_path / "images.csv")
    with open(tmp_path / "images.csv", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["image"] == "caf\\udce9.png"
