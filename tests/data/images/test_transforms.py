"""Crops: sizes, the area they keep, mirror images, and what they are a function of."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from uniflow.data.images import reading, transforms
from uniflow.data.images.reading import ImageReadError
from uniflow.data.images.transforms import (
    CenterCrop,
    CropPlan,
    RandomResizedCrop,
    Rectangle,
    _resize,
    resize_short_side,
)
from uniflow.data.sampler import SampleIndex, sample_generator


def gradient(height: int, width: int) -> torch.Tensor:
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    x = torch.linspace(0, 255, width)[None].expand(height, width)
    return torch.stack([y, x, torch.full((height, width), 128.0)]).round().to(torch.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (37, 64), (32, 32), (300, 200)])
def test_any_image_gives_the_size_asked_for(shape: tuple[int, int]) -> None:
    image = gradient(*shape)
    for seed in range(5):
        crop = RandomResizedCrop(32)(image, sample_generator(seed, 0))
        assert crop.shape == (3, 32, 32)
        assert crop.dtype == torch.uint8
        assert (crop[2].int() - 128).abs().max() <= 1
    assert CenterCrop(32, 0.875)(image).shape == (3, 32, 32)


def test_a_crop_keeps_the_share_asked_for() -> None:
    image, crop = gradient(400, 400), RandomResizedCrop(64, scale=(0.2, 0.5), flip=0)
    for seed in range(50):
        top, left, height, width = crop._box(400, 400, sample_generator(seed, 0))
        assert 0.19 < height * width / 400**2 < 0.51
        assert 0.74 < width / height < 1.35
        assert 0 <= top <= 400 - height
        assert 0 <= left <= 400 - width
    whole = RandomResizedCrop(400, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)
    assert torch.equal(whole(image, sample_generator(0, 0)), image)


def test_a_plan_says_how_small_an_image_may_be_decoded() -> None:
    plan = CropPlan(Rectangle(10, 20, 200, 300), (50, 50), Rectangle(0, 0, 50, 50))
    assert plan.min_side(400, 600) == 100  # a quarter of each: the cut keeps 50 rows
    assert plan.scaled(0.25, 0.25).cut == Rectangle(2, 5, 50, 75)
    assert plan._replace(resized=(400, 10)).min_side(400, 600) == 400  # it is enlarged
    assert plan.scaled(1 / 400, 1 / 600).cut[2:] == (1, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("fast", [True, False])
def test_a_crop_of_a_file_is_that_of_its_pixels(orientation: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FAST_JPEG", fast)
    y, x = np.mgrid[0:1200, 0:1600]
    pixels = np.stack([120 + 100 * np.sin(x / 90), y * 255 / 1200, x * 255 / 1600], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[reading.ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    whole, crop = reading.read_image(file.getvalue()), RandomResizedCrop(96)
    for seed in range(12):
        expected = crop(whole, sample_generator(seed, 0))
        read = crop.read(file.getvalue(), "x.jpg", sample_generator(seed, 0))
        assert (read.int() - expected.int()).abs().float().mean() < 1.5


def test_a_file_is_decoded_no_larger_than_its_crop_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spy(*args: Any) -> torch.Tensor:
        image = reading.read_image(*args)
        shapes.append(image.shape)
        return image

    monkeypatch.setattr(transforms, "read_image", spy)
    file = io.BytesIO()
    Image.new("RGB", (800, 1600)).save(file, "JPEG")
    for share in (1.0, 0.25, 0.01):
        crop = RandomResizedCrop(100, scale=(share, share), ratio=(1.0, 1.0))
        crop.read(file.getvalue(), "x.jpg", sample_generator(0, 0))
    assert shapes == [(3, 200, 100), (3, 400, 200), (3, 1600, 800)]


def test_another_size_for_one_call() -> None:
    image, crop = gradient(400, 300), RandomResizedCrop(64, scale=(0.2, 0.5), flip=0)
    assert crop(image, sample_generator(0, 0), (32, 64)).shape == (3, 32, 64)
    assert torch.equal(crop(image, sample_generator(0, 0), (64, 64)), crop(image, sample_generator(0, 0)))
    for seed in range(50):
        _, _, height, width = crop._box(400, 300, sample_generator(seed, 0), aspect=0.5)
        assert 0.19 < height * width / (400 * 300) < 0.51
        assert 0.74 < 2 * width / height < 1.35  # squeezed by no more than `ratio`, relative to the result's aspect
    assert crop._box(10, 3000, sample_generator(0, 0), aspect=2.0)[2:] == (10, 27)  # the widest that is allowed


def test_half_of_the_crops_are_mirrored() -> None:
    image = gradient(16, 16)
    crop = RandomResizedCrop(16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    mirrored = [torch.equal(crop(image, sample_generator(0, i)), image.flip(-1)) for i in range(400)]
    assert 160 < sum(mirrored) < 240


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    image, crop = gradient(90, 120), RandomResizedCrop(32)

    def draw(seed: int, epoch: int, index: int) -> torch.Tensor:
        return crop(image, sample_generator(seed, SampleIndex(index, epoch)))

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)]:
        assert not torch.equal(draw(1, 2, 3), draw(*other))


@pytest.mark.parametrize("to", [(16, 24), (100, 30), (301, 200)])
def test_resizing_is_that_of_torchvision(to: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (90, 120, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = image.permute(2, 0, 1)  # the layout that decoders give
    for cut in (image, image[:, 5:77, 10:80], image.contiguous()):
        expected = functional.resize(cut, list(to), functional.InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(_resize(cut, *to), expected)


def test_the_centre_is_kept() -> None:
    image = gradient(100, 300)
    crop = CenterCrop(100)(image)
    assert torch.equal(crop, image[:, :, 100:200])
    zoomed = CenterCrop(64, 0.5)(image)
    assert zoomed[0].float().mean().item() == pytest.approx(127.5, abs=2)
    assert 60 < zoomed[0].min() < 70
    assert CenterCrop(8)(torch.zeros(3, 2, 3_000_000, dtype=torch.uint8)).shape == (3, 8, 8)
    assert resize_short_side(gradient(50, 75), 20).shape == (3, 20, 30)
    for size, side in (((1, 300), 32), ((300, 1), 2), ((8, 8), 10_000)):  # gigabytes, if they were thousands
        with pytest.raises(ImageReadError, match=r"a.png: .* pixels would be enlarged to .*; take a smaller size"):
            resize_short_side(torch.zeros(3, *size, dtype=torch.uint8), side, "a.png")


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"ratio": (0.0, 1.0)}, {"flip": 1.5}]
)
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        RandomResizedCrop(**{"size": 8, **bad})


def test_a_centre_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="must be in"):
        CenterCrop(8, 0.0)
