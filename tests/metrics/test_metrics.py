"""Metrics against scikit-image, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.linear_model import LogisticRegression

from uniflow.metrics import linear_probe, linear_psnr, patch_means, psnr, ssim


@pytest.fixture(scope="module")
def pair():
    photo = torch.from_numpy(photographs.astronaut()[:128, :96].copy()).permute(2, 0, 1)[None].float() / 255
    noisy = (photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return photo, noisy


def test_psnr_and_ssim_equal_scikit_image(pair):
    photo, noisy = pair
    images = [t[0].permute(1, 2, 0).double().numpy() for t in pair]
    assert psnr(noisy, photo).item() == pytest.approx(peak_signal_noise_ratio(*images, data_range=1.0), abs=1e-4)
    expected = structural_similarity(
        *images, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(noisy, photo).item() == pytest.approx(expected, abs=5e-6)


def test_they_are_per_image_and_bounded(pair):
    photo, noisy = pair
    both = psnr(torch.cat([photo, noisy]), torch.cat([photo, photo]))
    assert both[0] == 100  # equal images have no finite value
    assert both[1] == psnr(noisy, photo)[0]
    assert ssim(photo, photo).item() == pytest.approx(1)
    assert psnr(photo.bfloat16(), photo).dtype == torch.float32


def test_patch_means():
    images = torch.rand(2, 3, 16, 24)
    means = patch_means(images, 8)
    assert means.shape == images.shape
    torch.testing.assert_close(means[0, 1, 8:16, 16:24], images[0, 1, 8:16, 16:24].mean().expand(8, 8))


def test_linear_probe_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    features = rng.normal(size=(4, 10))[labels] + 1.5 * rng.normal(size=(600, 10))
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    accuracy = linear_probe(x[:400], y[:400], x[400:], y[400:], l2=1e-3)
    mean, std = features[:400].mean(0), features[:400].std(0)
    # scikit-learn minimises the sum over samples plus |w|^2 / (2 C).
    model = LogisticRegression(C=1 / (2 * 1e-3 * 400), max_iter=1000)
    model.fit((features[:400] - mean) / std, labels[:400])
    assert accuracy == pytest.approx(model.score((features[400:] - mean) / std, labels[400:]), abs=0.011)
    assert 0.5 < accuracy < 1
    shuffled = linear_probe(x[:400], y[torch.randperm(400)], x[400:], y[400:])
    assert shuffled < 0.45


def test_linear_probe_works_inside_inference_mode_and_with_unseen_classes():
    with torch.inference_mode():
        x, y = torch.eye(3).repeat(5, 1), torch.arange(3).repeat(5)
        assert linear_probe(x, y, x, y) == 1
        assert linear_probe(x[:2], y[:2], x, y) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="test split"):
        linear_probe(x, y, x[:0], y[:0])


def _images_and_tokens(seed=0):
    """Smooth images, and tokens that are a linear function of their patches."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(24, 3, 9, 9, generator=generator), (32, 32), mode="bilinear")
    patches = F.unfold(images, 8, stride=8).transpose(1, 2)
    weights = torch.randn(192, 192, generator=torch.Generator().manual_seed(99)) / 192**0.5
    return patches @ weights + 3, images


def test_linear_psnr_is_that_of_the_principal_components_where_tokens_are_patches():
    tokens, images = _images_and_tokens()
    y = F.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1).double()
    left = torch.linalg.svdvals(y - y.mean(dim=0))[6:].square().sum() / y.numel()
    expected = -10 * left.log10().item()
    found = linear_psnr(tokens, images, tokens, images, patch_size=8, rank=6, ridge=1e-12)
    assert found == pytest.approx(expected, abs=1e-3)
    as_bytes = (images * 255).round().to(torch.uint8)
    assert linear_psnr(tokens, as_bytes, tokens, as_bytes, patch_size=8, rank=6) == pytest.approx(expected, abs=0.1)


def test_linear_psnr_settings_change_it():
    (tokens, images), (test_tokens, test_images) = _images_and_tokens(0), _images_and_tokens(1)
    data = (tokens, images, test_tokens, test_images)
    whole, low, flat = (
        linear_psnr(*data, patch_size=8, **setting) for setting in ({"rank": None}, {"rank": 2}, {"ridge": 10.0})
    )
    assert whole > low + 3
    assert whole > flat + 3


def test_linear_psnr_refuses_what_does_not_belong_together():
    tokens, images = _images_and_tokens()
    with pytest.raises(ValueError, match=r"\(24, 15\) tokens for \(24, 16\) patches"):
        linear_psnr(tokens[:, 1:], images, tokens, images, patch_size=8)
    with pytest.raises(ValueError, match="rank must be at least 1 or None, not 0"):
        linear_psnr(tokens, images, tokens, images, patch_size=8, rank=0)
