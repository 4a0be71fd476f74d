"""What generation adds to the flow: shifted times, Heun's method."""

import math
from itertools import pairwise

import pytest
import torch

from uniflow.flow import dimension_shift, dopri5, euler, heun, shift_times, step_times


def exact(x: torch.Tensor) -> torch.Tensor:
    """Solution at t = 1 of dx/dt = x cos(3 t) from x at t = 0."""
    return x * math.exp(math.sin(3.0) / 3)


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2)])
def test_a_samplers_order_of_convergence(method, order):
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    errors = [
        float((method(lambda x, t: x * math.cos(3 * t), start, step_times(steps)) - exact(start)).abs().max())
        for steps in (80, 160, 320)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_the_adaptive_sampler_keeps_its_tolerance_with_fewer_evaluations(tolerance):
    pytest.importorskip("torchdiffeq")
    start, calls = torch.tensor([1.0, -2.0], dtype=torch.float64), []

    def velocity(x, t):
        calls.append(t)
        return x * math.cos(3 * t)

    error = float((dopri5(velocity, start, [0.0, 1.0], tolerance) - exact(start)).abs().max())
    assert error < 10 * tolerance  # that of all steps; each keeps the tolerance
    assert len(calls) < 100
    assert max(calls) <= 1
    with pytest.raises(ValueError, match="dopri5 cannot reach the tolerance"):
        dopri5(lambda x, t: x * math.nan, start, [0.0, 1.0], tolerance)


def test_without_torchdiffeq_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="dopri5 needs torchdiffeq: pip install torchdiffeq"):
        dopri5(lambda x, t: x, torch.ones(1), [0.0, 1.0], 1e-3)


def test_shifted_times_keep_their_ends_and_move_towards_the_noise():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_times(t, 1.0), t)
    shifted = shift_times(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] < t[1:-1]).all()
    # In the clock of arXiv 2403.03206, where 1 is noise: s u / (1 + (s - 1) u).
    noise = 1 - t
    torch.testing.assert_close(1 - shifted, 3 * noise / (1 + 2 * noise))


def test_the_shift_of_the_dimension():
    assert dimension_shift(4096) == 1
    assert dimension_shift(4 * 4096) == 2
