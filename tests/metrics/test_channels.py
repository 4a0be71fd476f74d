"""Moments of channels: the definition, whatever the cut and the scale."""

import pytest
import torch

from uniflow.metrics import ChannelMoments


def collect(*batches):
    moments = ChannelMoments()
    for batch in batches:
        moments.update(batch)
    return moments.compute()


def test_moments_are_population_moments_whatever_the_batches():
    torch.manual_seed(0)
    images = torch.randn(7, 3, 4, 5) * torch.tensor([1.0, 10.0, 1e-3]).view(3, 1, 1) + 2
    values = images.double().transpose(0, 1).flatten(1)
    for batches in ([images], images.split(2), images.flip(0).split(3), images.split(1)):
        found = collect(*batches)
        assert found.count == 7 * 4 * 5
        torch.testing.assert_close(found.mean, values.mean(dim=1), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.std, values.std(dim=1, correction=0), rtol=1e-12, atol=0)


def test_a_mean_far_from_zero_costs_no_digits():
    values = 1e6 + torch.linspace(-1, 1, 1001, dtype=torch.float64)
    found = collect(*values.view(-1, 1, 1, 1).split(10))
    assert found.std.item() == pytest.approx(values.std(correction=0).item(), rel=1e-8)


def test_grids_of_different_sizes_count_by_their_places():
    small, large = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 3)
    found = collect(small, large)
    assert found.mean.tolist() == pytest.approx([0.75, 0.75])


def test_a_second_collection_starts_afresh_and_none_is_refused():
    moments = ChannelMoments()
    moments.update(torch.ones(1, 1, 2, 2))
    assert moments.compute().std.tolist() == [0]
    moments.update(torch.zeros(1, 1, 2, 2))
    assert moments.compute().mean.tolist() == [0]
    with pytest.raises(ValueError, match="no images"):
        moments.compute()
