"""The diffusion transformer: what each argument changes, guidance, and samples that depend on themselves alone."""

from importlib.util import find_spec

import pytest
import torch

from uniflow.conditions import Conditioning, LabelCondition
from uniflow.core.part import build_part, part_config
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.flow import data_to_velocity
from uniflow.generators import DiT, LatentGenerator

LATENT, TOLD = LatentSpec(4, 8), ConditionSpec(8)
TINY = {"width": 16, "depth": 2, "num_heads": 2, "steps": 3}
NOISE = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
VECTOR = Conditioning(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
NOTHING = Conditioning(torch.zeros(3, 8))


def awake(**options):
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = DiT(LATENT, TOLD, **{**TINY, **options}).eval()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return network


def loss(network, vector=VECTOR):
    torch.manual_seed(5)
    return sum(network.loss(LATENTS, vector).values()).item()


def test_it_starts_by_predicting_zero():
    network = DiT(LATENT, TOLD, **TINY)
    assert network(NOISE, torch.rand(3), VECTOR).abs().max() == 0
    flow = network.validation_loss(LATENTS, NOISE, torch.full((3,), 0.5), VECTOR)["flow"]
    torch.testing.assert_close(flow, (LATENTS - NOISE).square().mean())


@pytest.mark.parametrize(
    "change",
    [
        {"width": 24},
        {"depth": 3},
        {"num_heads": 4},
        {"mlp_ratio": 2.0},
        {"prediction": "data"},
        {"shift": 3.0},
        {"uniform_share": 1.0},
        {"internal_weight": 0.5},
        {"internal_weight": 1.0},
        {"internal_weight": 0.5, "depth": 3, "internal_depth": 2},
        {"head_width": 24, "head_depth": 1},
        {"head_width": 24, "head_depth": 2},
        {"head_width": 32, "head_depth": 1},
        {"positions": "both"},
        {"mlp_kernel": 3},
        {"mlp_kernel": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_loss(change):
    assert loss(awake()) != pytest.approx(loss(awake(**change)), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"method": "heun"}, {"guidance": 2.0}, {"shift": 3.0}],
    ids=lambda change: next(iter(change)),
)
@torch.no_grad()
def test_every_argument_of_sampling_changes_the_samples(change):
    first, other = (network.sample(NOISE, VECTOR, NOTHING) for network in (awake(), awake(**change)))
    assert not torch.allclose(first, other, atol=1e-4)


@torch.no_grad()
def test_guidance_of_one_costs_one_pass_and_is_no_guidance():
    network = awake()
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    assert sizes == [3, 3, 3]
    torch.testing.assert_close(plain, network.sample(NOISE, VECTOR, VECTOR, guidance=3.0), rtol=1e-4, atol=1e-5)
    assert sizes[3:] == [6, 6, 6]


@torch.no_grad()
def test_guidance_moves_away_from_nothing_in_its_interval_only():
    network, none = awake(), awake(guidance_interval=(0.99, 1.0))
    unguided = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    assert not torch.allclose(unguided, network.sample(NOISE, VECTOR, NOTHING, guidance=3.0), atol=1e-3)
    torch.testing.assert_close(unguided, none.sample(NOISE, VECTOR, NOTHING, guidance=3.0))
    # w = 0 is the unconditional model.
    free = network.sample(NOISE, NOTHING, NOTHING, guidance=1.0)
    torch.testing.assert_close(free, network.sample(NOISE, VECTOR, NOTHING, guidance=0.0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_adaptive_sampler_agrees_with_many_steps_and_takes_each_image_alone():
    pytest.importorskip("torchdiffeq")
    network, other = (awake(method=method, tolerance=1e-4, guidance=2.0) for method in ("dopri5", "heun"))
    for one in (network, other):  # random weights make of the time a field that wants steps without number
        one.time_embed.fc2.weight.zero_()
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = network.sample(NOISE, VECTOR, NOTHING)
    assert set(sizes) == {2}
    few = len(sizes)
    torch.testing.assert_close(found, other.sample(NOISE, VECTOR, NOTHING, steps=30), atol=2e-3, rtol=1e-3)
    network.tolerance = 1e-2
    assert not torch.equal(network.sample(NOISE, VECTOR, NOTHING), found)
    assert len(sizes) < 2 * few
    weak = network.sample_autoguided(NOISE, VECTOR, network, VECTOR, guidance=2.0)
    torch.testing.assert_close(weak, network.sample(NOISE, VECTOR, NOTHING, guidance=1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "method",
    [
        "euler",
        "heun",
        pytest.param(
            "dopri5", marks=pytest.mark.skipif(find_spec("torchdiffeq") is None, reason="torchdiffeq is missing")
        ),
    ],
)
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(method):
    network = awake(prediction="data", method=method, guidance=2.0)
    whole = network.sample(NOISE, VECTOR, NOTHING)
    alone = network.sample(NOISE[1:2], Conditioning(VECTOR.vector[1:2]), Conditioning(NOTHING.vector[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_that_knows_the_data_samples_them():
    network = awake(prediction="data", steps=4)
    network.forward = lambda x, t, told, internal: LATENTS[: len(x)]
    torch.testing.assert_close(network.sample(NOISE, VECTOR, NOTHING), LATENTS, rtol=1e-4, atol=1e-4)
    flow = network.validation_loss(LATENTS, NOISE, torch.full((3,), 0.3), VECTOR)["flow"]
    assert flow < 1e-10


def test_data_and_velocity_have_one_loss():
    network = awake(prediction="data")
    t = torch.tensor([0.1, 0.5, 0.9])
    flow = network.validation_loss(LATENTS, NOISE, t, VECTOR)["flow"]
    time = t.view(-1, 1, 1, 1)
    x_t = (1 - time) * NOISE + time * LATENTS
    velocity = data_to_velocity(network(x_t, t, VECTOR), x_t, time)
    torch.testing.assert_close(flow, (velocity - (LATENTS - NOISE)).square().mean(), rtol=1e-4, atol=1e-5)


def test_tokens_of_a_condition_are_attended_to():
    torch.manual_seed(0)
    network = DiT(LATENT, ConditionSpec(8, token_width=6), **TINY)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tokens, mask = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    t = torch.rand(3)
    first = network(NOISE, t, Conditioning(VECTOR.vector, tokens, mask))
    other = network(NOISE, t, Conditioning(VECTOR.vector, tokens + 1, mask))
    assert not torch.allclose(first, other, atol=1e-4)


def test_shift_by_the_dimension():
    network = DiT(LatentSpec(64, 14), TOLD, **TINY)
    assert network.shift_of(torch.empty(1, 64, 16, 16)) == 2
    assert network.shift_of(torch.empty(1, 64, 2, 2)) == 1
    assert DiT(LATENT, TOLD, **TINY, shift=5.0).shift_of(LATENTS) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 3}, "multiple of 4"),
        ({"guidance_interval": (0.5, 0.5)}, "must rise"),
        ({"steps": 0}, "steps"),
        ({"guidance_from": "internal"}, "trained with an internal_weight"),
        ({"head_width": 20, "head_depth": 1}, "a head_width that is a multiple of 8 "),
        ({"head_width": 24}, "a head_depth above 0, got 24 and 0"),
        ({"head_depth": 2}, "got 0 and 2"),
        ({"internal_weight": 0.5, "internal_depth": 2}, "internal_depth must be below depth 2"),
        ({"mlp_kernel": 2}, "mlp_kernel must be odd, or 0 for none, got 2"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiT(LATENT, TOLD, **{**TINY, **wrong})


def test_it_is_rebuilt_from_its_config():
    network = awake(guidance_interval=(0.1, 0.8))
    again = build_part(part_config(network), LatentGenerator, LATENT, TOLD)
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(NOISE, torch.zeros(3), VECTOR), network(NOISE, torch.zeros(3), VECTOR))
    assert again.guidance_interval == (0.1, 0.8)


def test_gradients_reach_the_condition():
    condition, network = LabelCondition(3, width=8), awake()
    network.loss(LATENTS, condition(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.bool)))["flow"].backward()
    assert (condition.embedding.weight.grad[:3].abs().sum(1) > 0).all()
