"""The flow path and the samplers against closed forms."""

import math

import pytest
import torch

from uniflow.flow import data_to_velocity, euler, guide, interpolate, sample_times, step_times, velocity_target


def test_path_runs_from_noise_to_data():
    noise, data = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    assert torch.equal(interpolate(noise, data, torch.zeros(2, 5, 1)), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(2, 5, 1)), data)
    t = torch.rand(2, 5, 1, dtype=torch.float64)
    step = 1e-6
    numeric = (interpolate(noise, data, t + step) - interpolate(noise, data, t - step)) / (2 * step)
    torch.testing.assert_close(numeric, velocity_target(noise, data).double(), atol=1e-5, rtol=0)


def test_true_data_implies_the_true_velocity():
    noise, data, t = torch.randn(4, 6), torch.randn(4, 6), torch.rand(4, 1) * 0.9
    velocity = data_to_velocity(data, interpolate(noise, data, t), t)
    torch.testing.assert_close(velocity, velocity_target(noise, data), atol=1e-4, rtol=1e-4)
    assert torch.isfinite(data_to_velocity(data, data + 1, torch.ones(4, 1))).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_euler_is_exact_on_the_straight_path(steps):
    noise, data = torch.randn(3, 8), torch.randn(3, 8)
    times = []

    def velocity(x, t):
        times.append(t)
        return data - noise

    torch.testing.assert_close(euler(velocity, noise, step_times(steps)), data)
    assert times == pytest.approx([i / steps for i in range(steps)])


def test_euler_has_its_textbook_error_on_exponential_growth():
    # dx/dt = x from 1: S left-end Euler steps give (1 + 1/S)^S.
    x = euler(lambda x, t: x, torch.ones(1, dtype=torch.float64), step_times(8))
    assert float(x) == pytest.approx((1 + 1 / 8) ** 8, abs=1e-12)


def test_euler_on_a_gaussian_target_follows_the_marginal_velocity():
    # x ~ N(0, s^2), eps ~ N(0, 1): v(x, t) = x (t s^2 - (1 - t)) / ((1 - t)^2 + t^2 s^2); the map scales by s.
    s = 0.3
    x = euler(
        lambda x, t: x * (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2),
        torch.ones(1, dtype=torch.float64),
        step_times(4000),
    )
    assert float(x) == pytest.approx(s, abs=1e-3)


def test_power_schedule():
    assert step_times(4) == [0, 0.25, 0.5, 0.75, 1]
    assert step_times(4, schedule="power", power=1.0) == [0, 0.25, 0.5, 0.75, 1]
    expected = [1 - ((4 - i) / 4) ** (1 / 0.25) for i in range(5)]
    assert step_times(4, schedule="power", power=0.25) == pytest.approx(expected)
    for steps in (0, 10_001):
        with pytest.raises(ValueError, match=f"from 1 to 10,000 steps, not {steps}"):
            step_times(steps)
    with pytest.raises(ValueError, match="positive"):
        step_times(2, schedule="power", power=0)


def test_guidance_is_linear_and_one_is_neutral():
    v, null = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(guide(v, null, 1.0), v)
    torch.testing.assert_close(guide(v, null, 0.0), null)
    torch.testing.assert_close(guide(v, null, 1.5), 1.5 * v - 0.5 * null)


def test_training_times_have_the_stated_distribution():
    generator = torch.Generator().manual_seed(0)
    t = sample_times((200_000,), generator=generator, uniform_share=0.0)
    # The median of sigmoid(N(0, 1)) is 1/2; P(t < sigmoid(-1)) = Phi(-1).
    assert float(t.median()) == pytest.approx(0.5, abs=0.005)
    assert float((t < 1 / (1 + math.e)).float().mean()) == pytest.approx(0.158655, abs=0.004)
    uniform = sample_times((200_000,), generator=generator, uniform_share=1.0)
    assert float((uniform < 0.1).float().mean()) == pytest.approx(0.1, abs=0.004)
    mixed = sample_times((200_000,), generator=generator, uniform_share=0.1, end_point_mass=0.5)
    assert float((mixed == 0).float().mean()) == pytest.approx(0.5, abs=0.005)
    assert mixed.min() >= 0
    assert mixed.max() <= 1
    assert t.dtype == torch.float32
