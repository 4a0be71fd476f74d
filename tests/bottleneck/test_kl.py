"""The Gaussian bottleneck against closed forms."""

import pytest
import torch
from tiny import ENCODER, output_of
from torch.distributions import Normal, kl_divergence

from uniflow.bottleneck import KLBottleneck
from uniflow.bottleneck.kl import gaussian_kl

SPEC = ENCODER().spec


def fixed(mean, log_variance, **kwargs):
    """A bottleneck whose Gaussian is the same for every token."""
    bottleneck = KLBottleneck(SPEC, channels=2, **kwargs)
    torch.nn.init.zeros_(bottleneck.fc2.weight)
    bottleneck.fc2.bias.data = torch.tensor([mean, mean, log_variance, log_variance])
    return bottleneck


def test_divergence_is_summed_over_an_image_and_averaged_over_the_batch():
    mean, log_variance = torch.randn(5, 3, 4, 2), torch.randn(5, 3, 4, 2)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_weighted_divergence(training):
    # 1/2 (1 + e^0 - 1 - 0) = 1/2 for each of 2 channels and 6 latents.
    _, losses = fixed(1.0, 0.0, weight=0.1).train(training)(output_of(torch.randn(4, SPEC.embed_dim, 2, 3)))
    assert losses.keys() == {"kl"}
    assert losses["kl"].item() == pytest.approx(0.1 * 0.5 * 2 * 6)


def test_a_sample_in_training_and_the_mean_in_evaluation():
    bottleneck = fixed(2.0, -2.0)
    features = torch.randn(4, SPEC.embed_dim, 32, 32)
    torch.manual_seed(0)
    samples, _ = bottleneck(output_of(features))
    assert samples.mean().item() == pytest.approx(2, abs=0.02)
    assert samples.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=0.01)
    assert not torch.equal(bottleneck(output_of(features))[0], samples)
    torch.manual_seed(0)
    assert torch.equal(bottleneck(output_of(features))[0], samples)
    assert torch.equal(bottleneck.eval()(output_of(features))[0], torch.full_like(samples, 2.0))


@pytest.mark.parametrize(("log_variance", "bound"), [(1e4, 20.0), (-1e4, -30.0)])
def test_log_variance_is_clamped(log_variance, bound):
    _, losses = fixed(0.0, log_variance, weight=1.0)(output_of(torch.randn(1, SPEC.embed_dim, 1, 1)))
    expected = gaussian_kl(torch.zeros(1, 2), torch.full((1, 2), bound))
    torch.testing.assert_close(losses["kl"], expected)
