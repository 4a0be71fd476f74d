"""Noise on latents: its strength, its unit, and that none is none."""

import pytest
import torch
from tiny import tiny_task

from uniflow.tokenizer.latent_noise import add_latent_noise, augment_latents


@pytest.fixture(scope="module")
def tokenizer():
    task = tiny_task()
    task.configure_model()
    return task.tokenizer


def latents_of(std):
    torch.manual_seed(0)
    return torch.randn(64, 8, 16, 16) * torch.tensor(std).view(-1, 1, 1)


STD = [0.5, 1, 2, 4, 8, 16, 32, 64]


def test_strength_is_half_normal_for_each_sample_and_of_each_channels_size(tokenizer):
    latents = latents_of(STD)
    added = (augment_latents(tokenizer, latents, 0.3) - latents) / torch.tensor(STD).view(-1, 1, 1)
    by_channel = added.std(dim=(2, 3))  # (B, C): one strength for all channels of a sample
    strength = by_channel.mean(dim=1)
    torch.testing.assert_close(by_channel, strength[:, None].expand(-1, 8), rtol=0.2, atol=0.01)
    assert strength.square().mean().sqrt() == pytest.approx(0.3, rel=0.25)
    assert strength.min() < 0.1 < 0.5 < strength.max()


def test_the_unit_is_that_of_the_statistics_where_there_are_some(tokenizer):
    latents = latents_of(STD)
    tokenizer.set_latent_statistics([0.0] * 8, [1.0] * 8, 5)
    added = augment_latents(tokenizer, latents, 0.3) - latents
    tokenizer.clear_latent_statistics()
    assert added.std(dim=(0, 2, 3)).max() < 0.5


def test_none_is_none_and_draws_nothing(tokenizer):
    latents = latents_of(STD)
    state = torch.get_rng_state()
    assert augment_latents(tokenizer, latents, 0.0) is latents
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_pass_and_the_type_stays(tokenizer):
    latents = latents_of(STD)[:2].bfloat16().requires_grad_()
    noised = augment_latents(tokenizer, latents, 0.3)
    assert noised.dtype == torch.bfloat16
    noised.float().sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))
    given = add_latent_noise(torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1), 2.0, torch.tensor([1.0, 2.0, 3.0]))
    assert given[1].flatten().tolist() == [2, 4, 6]
