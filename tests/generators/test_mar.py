"""The masked autoregressive generator: what is hidden, the order and sizes of sets, and what each argument changes."""

import itertools

import pytest
import torch

from uniflow.conditions import Conditioning, LabelCondition
from uniflow.core.part import build_part, part_config
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.generators import MAR, LatentGenerator
from uniflow.generators import mar as module
from uniflow.generators.mar import set_edges

LATENT, TOLD = LatentSpec(4, 8), ConditionSpec(8)
TINY = {"width": 16, "depth": 2, "num_heads": 2, "head_width": 16, "head_depth": 2, "steps": 3, "flow_steps": 3}
NOISE = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
VECTOR = Conditioning(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
NOTHING = Conditioning(torch.zeros(3, 8))


def awake(condition=TOLD, **options):
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = MAR(LATENT, condition, **{**TINY, **options}).eval()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return network


def loss(network):
    torch.manual_seed(5)
    return network.loss(LATENTS, VECTOR)["flow"].item()


@pytest.mark.parametrize(
    "change",
    [
        {"width": 24},
        {"depth": 3},
        {"num_heads": 4},
        {"mlp_ratio": 2.0},
        {"head_width": 24},
        {"head_depth": 3},
        {"mask_min": 0.1},
        {"mask_std": 5.0, "mask_min": 0.1},
        {"repeats": 2},
        {"uniform_share": 1.0},
        {"mlp_kernel": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_loss(change):
    assert loss(awake()) != pytest.approx(loss(awake(**change)), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"flow_steps": 5}, {"guidance": 2.0}, {"guidance": 2.0, "guidance_schedule": "constant"}],
    ids=str,
)
@torch.no_grad()
def test_every_argument_of_sampling_changes_the_samples(change):
    before = {"guidance": 2.0} if "guidance_schedule" in change else {}
    first, other = (network.sample(NOISE, VECTOR, NOTHING) for network in (awake(**before), awake(**change)))
    assert not torch.allclose(first, other, atol=1e-4)


@torch.no_grad()
def test_the_order_changes_the_samples(monkeypatch):
    network = awake()
    first = network.sample(NOISE, VECTOR, NOTHING)
    draws = module._draws
    monkeypatch.setattr(module, "_draws", lambda noise: -draws(noise))  # from the last to the first
    assert not torch.allclose(first, network.sample(NOISE, VECTOR, NOTHING), atol=1e-3)
    one = awake(steps=1)  # all at once: there is no order
    backwards = one.sample(NOISE, VECTOR, NOTHING)
    monkeypatch.setattr(module, "_draws", draws)
    torch.testing.assert_close(one.sample(NOISE, VECTOR, NOTHING), backwards)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    network = awake(guidance=2.0)
    whole = network.sample(NOISE, VECTOR, NOTHING)
    alone = network.sample(NOISE[1:2], Conditioning(VECTOR.vector[1:2]), Conditioning(NOTHING.vector[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_guidance_of_one_costs_one_pass_and_is_no_guidance():
    network, sizes = awake(guidance_schedule="constant"), []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    torch.testing.assert_close(plain, network.sample(NOISE, VECTOR, VECTOR, guidance=3.0), rtol=1e-4, atol=1e-4)
    assert sizes == [3, 3, 3, 6, 6, 6]
    free = network.sample(NOISE, NOTHING, NOTHING, guidance=1.0)
    torch.testing.assert_close(free, network.sample(NOISE, VECTOR, NOTHING, guidance=0.0), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_hidden_latent_is_not_seen_and_its_place_is():
    network = awake()
    known = torch.tensor([[True, False, True, False, False, False]]).expand(3, -1)
    told = network(LATENTS, known, VECTOR)
    changed = LATENTS.clone().flatten(2)
    changed[..., 1] += 5
    torch.testing.assert_close(told, network(changed.view_as(LATENTS), known, VECTOR))
    changed[..., 2] += 5
    assert not torch.allclose(told, network(changed.view_as(LATENTS), known, VECTOR), atol=1e-3)
    empty = network(LATENTS, torch.zeros_like(known), VECTOR)
    assert (empty[:, 1:] - empty[:, :-1]).abs().amax(dim=-1).min() > 1e-3


def test_the_hidden_share_is_a_truncated_normal():
    network = MAR(LATENT, TOLD, **TINY)
    ranks = torch.arange(1000).expand(2001, -1)
    hidden = 1000 - network.known(ranks, torch.linspace(0, 1, 2001)).sum(dim=1)
    assert hidden.min() == 700
    assert hidden.max() == 1000
    # The density ends at 1.2 standard deviations: E[z | -1.2 < z < 0] = (phi(1.2) - phi(0)) / (Phi(0) - Phi(-1.2)).
    assert hidden.float().mean() == pytest.approx(1000 * (1 - 0.25 * (0.39894 - 0.19419) / (0.5 - 0.11507)), abs=2)


@pytest.mark.parametrize(("count", "steps"), [(256, 64), (64, 16), (6, 6), (6, 100), (6, 5), (5, 1)])
def test_sets_grow_by_a_cosine_and_none_is_empty(count, steps):
    edges = set_edges(count, steps)
    assert (edges[0], edges[-1], len(edges)) == (0, count, min(count, steps) + 1)
    assert all(a < b for a, b in itertools.pairwise(edges))
    if steps * 4 == count:
        assert edges[steps // 2] == count - int(count * 0.5**0.5)


def test_it_learns_one_batch():
    torch.manual_seed(0)
    condition = LabelCondition(2, width=8)
    sizes = {"width": 32, "depth": 1, "head_width": 32, "head_depth": 1, "flow_steps": 20}
    network = MAR(LATENT, condition.spec, **{**TINY, **sizes})
    parameters = [*network.parameters(), *condition.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-2)
    latents, keep = LATENTS[:2], torch.zeros(16, dtype=torch.bool)
    for _ in range(60):
        told = condition(torch.tensor([0, 1] * 8), keep)
        optimizer.zero_grad()
        network.loss(latents.repeat(8, 1, 1, 1), told)["flow"].backward()
        optimizer.step()
    with torch.no_grad():
        told, nothing = condition(torch.tensor([0, 1]), keep[:2]), condition(None, ~keep[:2])
        made = network.sample(NOISE[:2], told, nothing)
    errors = (made[:, None] - latents).square().mean(dim=(2, 3, 4))
    assert errors.diagonal().max() < 0.1
    assert errors.flip(1).diagonal().min() > 0.5


def test_validation_repeats_itself_and_tokens_are_attended_to():
    network = awake(ConditionSpec(8, token_width=6))
    tokens, mask = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    times = torch.full((3,), 0.5)
    told, other = (Conditioning(VECTOR.vector, tokens + offset, mask) for offset in (0, 1))
    first, again = (network.validation_loss(LATENTS, NOISE, times, told)["flow"] for _ in range(2))
    assert first == again
    assert first != network.validation_loss(LATENTS, NOISE, times, other)["flow"]


def test_it_is_rebuilt_from_its_config_and_refuses_heads_that_do_not_fit():
    network = awake(mask_min=0.5)
    again = build_part(part_config(network), LatentGenerator, LATENT, TOLD)
    again.load_state_dict(network.state_dict())
    assert loss(again.eval()) == loss(network)
    with pytest.raises(ValueError, match="multiple of 4"):
        MAR(LATENT, TOLD, **{**TINY, "num_heads": 3})
