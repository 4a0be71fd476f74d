"""Reduced-rank regression against numpy, and sums that no order or batch size changes."""

import numpy as np
import pytest
import torch

from uniflow.start import SecondMoments, solve

N, F, P, Q, C = 400, 12, 9, 5, 4


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, F, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, F) + 3
    mixing = torch.randn(F, P + Q, generator=generator, dtype=torch.float64) / torch.logspace(-2, 2, F)[:, None]
    noise = torch.randn(N, P + Q, generator=generator, dtype=torch.float64)
    return inputs, inputs @ mixing + 0.3 * noise - 1


def moments_of(inputs, targets, *cuts):
    moments = SecondMoments()
    for x, y in zip(inputs.tensor_split(cuts), targets.tensor_split(cuts), strict=True):
        moments.update(x, y)
    moments.reduce()
    return moments


def with_numpy(inputs, targets, share):
    """The same regression from the data themselves: least squares, then principal components of its fit."""
    x, y = inputs.numpy() - inputs.numpy().mean(0), targets.numpy() - targets.numpy().mean(0)
    pixels, features = y[:, :P], y[:, P:]
    weighed = np.hstack(
        [pixels * ((1 - share) / pixels.var(0).sum()) ** 0.5, features * (share / features.var(0).sum()) ** 0.5]
    )
    fit = x @ np.linalg.lstsq(x, weighed, rcond=None)[0]
    latents = fit @ np.linalg.svd(fit, full_matrices=False)[2][:C].T
    painted = latents @ np.linalg.lstsq(latents, pixels, rcond=None)[0] + targets.numpy()[:, :P].mean(0)
    kept = latents @ np.linalg.lstsq(latents, features, rcond=None)[0]
    return painted, 1 - ((features - kept) ** 2).sum() / (features**2).sum()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_closed_form(share):
    inputs, targets = data()
    found = solve(moments_of(inputs, targets), C, P, share, ridge=0.0)
    latents = inputs @ found.encode_weight.T + found.encode_bias
    torch.testing.assert_close(latents.mean(0), torch.zeros(C, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(C, dtype=torch.float64), atol=1e-6, rtol=0)
    painted = latents @ found.decode_weight.T + found.decode_bias
    expected, r2 = with_numpy(inputs, targets, share)
    np.testing.assert_allclose(painted.numpy(), expected, atol=1e-6)
    assert found.feature_r2 == pytest.approx(r2, abs=1e-7)
    error = (targets[:, :P] - painted).square().mean(0)
    torch.testing.assert_close(found.error, error, atol=1e-7, rtol=1e-6)


def test_more_share_keeps_more_of_the_features_and_less_of_the_pixels():
    moments = moments_of(*data())
    found = [solve(moments, C, P, share, ridge=1e-3) for share in (0.05, 0.3, 0.8)]
    assert found[0].feature_r2 < found[1].feature_r2 < found[2].feature_r2
    assert found[0].error.sum() < found[1].error.sum() < found[2].error.sum()


def test_every_setting_changes_the_solution():
    moments = moments_of(*data())
    base = solve(moments, C, P, 0.25, 1e-3)
    assert not torch.equal(solve(moments, C, P, 0.25, 0.5).decode_weight, base.decode_weight)
    torch.testing.assert_close(solve(moments, C, P, 0.25, 1e-3, scale=0.5).encode_weight, base.encode_weight / 2)


@pytest.mark.parametrize("cuts", [(1,), (7, 7, 300), (100, 200, 300)])
def test_neither_batches_nor_order_matter(cuts):
    inputs, targets = data()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    whole, parts = moments_of(inputs, targets), moments_of(inputs[order], targets[order], *cuts)
    assert parts.count == whole.count == N
    torch.testing.assert_close(parts.input_covariance, whole.input_covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.cross_covariance, whole.cross_covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.target_variance, whole.target_variance, rtol=1e-10, atol=1e-10)


def test_units_of_the_inputs_do_not_matter():
    inputs, targets = data()
    units = torch.logspace(-6, 6, F, dtype=torch.float64)
    one, other = (solve(moments_of(x, targets), C, P, 0.25, 1e-3).decode_weight.abs() for x in (inputs, inputs * units))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_inputs_and_targets_that_do_not_vary():
    inputs, targets = data()
    inputs[:, 3] = 7
    targets[:, 2] = 0.5
    found = solve(moments_of(inputs, targets), C, P, 0.25, 1e-3)
    assert all(torch.isfinite(t).all() for t in (found.encode_weight, found.decode_weight, found.error))
    assert found.decode_bias[2] == pytest.approx(0.5)
    black = solve(moments_of(inputs, torch.zeros_like(targets)), C, P, 0.25, 1e-3)
    assert all(torch.isfinite(t).all() for t in (black.encode_weight, black.decode_weight, black.error))


def test_too_many_channels_and_no_data_are_refused():
    with pytest.raises(ValueError, match="20 channels cannot be solved for from 12 inputs"):
        solve(moments_of(*data()), 20, P, 0.25, 1e-3)
    with pytest.raises(ValueError, match="no image"):
        SecondMoments().reduce()
