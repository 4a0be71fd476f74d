"""Numbers of clips: changes over time, flicker where nothing moves, in pieces and as a whole."""

import math

import pytest
import torch

from uniflow.metrics import psnr, ssim
from uniflow.metrics.video import ClipScores, describe, difference_psnr, flicker


@pytest.fixture
def clip():
    """A square that moves over still noise, and a reconstruction with errors of its own in every frame."""
    torch.manual_seed(0)
    original = torch.randint(0, 256, (3, 24, 32)).float().div(255).repeat(6, 1, 1, 1)
    for time, frame in enumerate(original):
        frame[:, 4:10, 3 * time : 3 * time + 6] = 0.9
    return (original + torch.randn_like(original) * 0.02).clamp(0, 1), original


def test_an_error_that_stands_still_changes_no_difference(clip):
    _, original = clip
    shifted = original * 0.9 + torch.linspace(0, 0.1, 32)  # still, but the square's contrast is smaller
    still = original + torch.linspace(0, 0.05, 32)
    assert difference_psnr(still, original).tolist() == pytest.approx([100.0] * 5, abs=20)
    assert difference_psnr(still, original).min() > 80
    expected = -10 * math.log10(((shifted[1] - shifted[0]) - (original[1] - original[0])).square().mean())
    assert difference_psnr(shifted, original)[0].item() == pytest.approx(expected, abs=1e-4)


def test_flicker_counts_static_pixels_alone(clip):
    _, original = clip
    still = (original.diff(dim=0).abs().amax(dim=1) == 0).float()
    blinking = original.clone()
    blinking[1::2] = (blinking[1::2] - 3 / 255).clamp(0, 1)
    changes, share = flicker(blinking, original)
    assert share.tolist() == pytest.approx(still.mean(dim=(1, 2)).tolist(), abs=0.02)
    assert (changes <= 3.0001).all()
    assert (changes > 2.9).all()
    assert flicker(original, original)[0].max() <= 2
    noisy = original + torch.rand_like(original) * 5 / 255
    assert flicker(noisy, noisy, 5.0)[1].min() > flicker(noisy, noisy, 1.0)[1].max()  # the threshold matters
    assert flicker(original, torch.rand(6, 3, 24, 32), 0)[0].isnan().any()


@pytest.mark.parametrize("sizes", [(6,), (1,) * 6, (2, 3, 1)])
def test_scores_do_not_depend_on_the_pieces(clip, sizes):
    reconstruction, original = clip
    scores = ClipScores()
    for pair in zip(reconstruction.split(sizes), original.split(sizes), strict=True):
        scores.update(*pair)
    found = scores.compute()
    changes, share = flicker(reconstruction, original)
    expected = {
        "frames": 6,
        "psnr": psnr(reconstruction, original).mean().item(),
        "ssim": ssim(reconstruction, original).mean().item(),
        "difference_psnr": difference_psnr(reconstruction, original).mean().item(),
        "static": share.mean().item(),
        "flicker": ((changes * share).sum() / share.sum()).item(),
        "flicker_original": 0.0,
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-3)
    assert "6 frames, PSNR" in describe(found)


def test_what_a_clip_is_too_short_or_too_small_for_is_nan():
    scores = ClipScores(threshold=0)
    scores.update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    found = scores.compute()
    assert math.isnan(found["ssim"])
    assert math.isnan(found["difference_psnr"])
    scores.update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    found = scores.compute()
    assert found["static"] == 0
    assert math.isnan(found["flicker"])
    assert not math.isnan(found["difference_psnr"])
