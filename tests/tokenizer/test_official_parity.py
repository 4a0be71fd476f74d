"""Every recorded intermediate of the public release, in float32 and float64."""

import pytest
import torch
from official_reference import (
    EMBEDDING,
    changed_frequencies,
    intermediates,
    reference_time_embedding,
    references,
    tolerance,
)

pytestmark = pytest.mark.filterwarnings("ignore:a velocity-predicting")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
VALUES = [(dtype, name) for dtype in DTYPES for name in references(DTYPES[dtype])]


@pytest.fixture(scope="module")
def measured():
    """Ours, by type and by whether the reference machine's time frequencies are used."""
    own = {name: intermediates(dtype) for name, dtype in DTYPES.items()}
    with reference_time_embedding():
        same = {name: intermediates(dtype) for name, dtype in DTYPES.items()}
    return {True: same, False: own}


@pytest.mark.parametrize("same_frequencies", [True, False], ids=["same_frequencies", "own_frequencies"])
@pytest.mark.parametrize(("dtype", "name"), VALUES)
def test_intermediate(measured, dtype, name, same_frequencies):
    found = measured[same_frequencies][dtype][name]
    exact = ".t" in name  # the sampler's times
    limit = 0 if exact else tolerance(DTYPES[dtype], reference_frequencies=same_frequencies)
    torch.testing.assert_close(found, references(DTYPES[dtype])[name], atol=limit, rtol=0)


def test_three_frequencies_of_the_reference_differ_from_ours():
    assert changed_frequencies() == [13, 44, 119]


def test_the_recovered_frequencies_matter(measured):
    """Without them the float64 path with t > 0 is off by far more than float64 rounds; at t = 0 nothing changes."""
    expected = references(torch.float64)
    errors = {
        (name, same): float((measured[same]["float64"][name] - expected[name]).abs().max())
        for name in ("reconstruction_steps1", "reconstruction_steps4")
        for same in (True, False)
    }
    assert errors["reconstruction_steps1", True] == errors["reconstruction_steps1", False] < 1e-12
    assert errors["reconstruction_steps4", False] > 10 * errors["reconstruction_steps4", True]


def test_the_patch_ends_with_its_context():
    with reference_time_embedding():
        inside = intermediates(torch.float32)[EMBEDDING]
    outside = intermediates(torch.float32)[EMBEDDING]
    assert not torch.equal(inside, outside)
