"""Guidance away from a weaker generator and from a network's own middle; the wide head."""

import pytest
import torch

from uniflow import Tokenizer
from uniflow.conditions import Conditioning, LabelCondition, NoCondition
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.generators import MAR, DiT, Generator
from uniflow.generators.space import PictureSpace
from uniflow.tools.sample import sample

LATENT, TOLD = LatentSpec(4, 8), ConditionSpec(8)
TINY = {"width": 16, "depth": 2, "num_heads": 2, "steps": 3}
NOISE = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
VECTOR = Conditioning(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
NOTHING = Conditioning(torch.zeros(3, 8))


def awake(seed=0, **options):
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(seed)
    network = DiT(LATENT, TOLD, **{**TINY, **options}).eval()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return network


# Losses of six steps, captured on commit 6147c86, before guidance from the middle and the wide head.
GOLDEN = [1.710966, 1.821825, 2.126443, 1.947628, 1.633149, 1.669442]


def passes(network):
    """Sizes of the batches that run through the network from now on."""
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def train(network, steps):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        torch.manual_seed(step % 4)
        terms = network.loss(LATENTS, VECTOR)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append({name: loss.item() for name, loss in terms.items()})
    return losses


def test_without_an_output_in_the_middle_all_is_as_before():
    torch.manual_seed(0)
    plain = DiT(LATENT, TOLD, **TINY)
    torch.manual_seed(0)
    with_middle = DiT(LATENT, TOLD, **TINY, internal_weight=0.5)
    added = with_middle.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in added} == {"internal_output"}
    assert all(torch.equal(value, with_middle.state_dict()[name]) for name, value in plain.state_dict().items())
    torch.manual_seed(5)
    losses = plain.loss(LATENTS, VECTOR)
    assert list(losses) == ["flow"]
    torch.manual_seed(5)
    assert with_middle.loss(LATENTS, VECTOR)["flow"] == losses["flow"]


def test_internal_guidance_trains_its_output_by_its_weight():
    losses = train(DiT(LATENT, TOLD, **TINY, internal_weight=0.5), 30)
    assert losses[0]["internal"] == pytest.approx(0.5 * losses[0]["flow"])  # both outputs start as zero
    assert losses[-4]["internal"] < 0.9 * losses[0]["internal"]


@torch.no_grad()
def test_internal_guidance_costs_one_pass_and_moves_away_from_the_middle():
    network = awake(internal_weight=0.5)
    of_null = network.sample(NOISE, VECTOR, NOTHING, guidance=2.0)
    plain = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    network.guide_from("internal")
    sizes = passes(network)
    guided = network.sample(NOISE, VECTOR, NOTHING, guidance=2.0)
    assert sizes == [3, 3, 3]
    torch.testing.assert_close(network.sample(NOISE, VECTOR, NOTHING, guidance=1.0), plain, rtol=0, atol=0)
    assert not torch.allclose(guided, plain, atol=1e-3)
    assert not torch.allclose(guided, of_null, atol=1e-3)
    # A strength of 0 is the output in the middle alone.
    network.final_proj.weight.zero_()
    network.final_proj.bias.zero_()
    middle = network.velocity(NOISE, 0.0, VECTOR, internal=True)[3:]
    torch.testing.assert_close(
        network.sample(NOISE, VECTOR, NOTHING, guidance=0.0, steps=1), NOISE + middle, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_a_strength_of_one_needs_no_weaker_generator():
    network, weak = awake(), awake(1, depth=1, prediction="data")
    sizes, weaks = passes(network), passes(weak)
    plain = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    same = network.sample_autoguided(NOISE, VECTOR, weak, VECTOR, guidance=1.0)
    assert (sizes, weaks) == ([3] * 6, [])
    torch.testing.assert_close(same, plain, rtol=0, atol=0)
    guided = network.sample_autoguided(NOISE, VECTOR, weak, VECTOR, guidance=2.0)
    assert (sizes[6:], weaks) == ([3, 3, 3], [3, 3, 3])
    assert not torch.allclose(guided, plain, atol=1e-3)
    # Guided by itself it is itself.
    torch.testing.assert_close(
        network.sample_autoguided(NOISE, VECTOR, network, VECTOR, guidance=3.0), plain, rtol=1e-4, atol=1e-5
    )


def test_a_wide_head_starts_at_zero_takes_the_output_layers_place_and_trains():
    wide = DiT(LatentSpec(20, 8), TOLD, **TINY, head_width=32, head_depth=2)
    noise = torch.randn(2, 20, 3, 2)
    told = Conditioning(VECTOR.vector[:2])
    assert wide(noise, torch.rand(2), told).abs().max() == 0
    assert wide(noise, torch.rand(2), told).shape == noise.shape
    names = {name.split(".")[0] for name in wide.state_dict()}
    assert "head" in names
    assert not any(name.startswith("final") for name in names)
    network = DiT(LATENT, TOLD, **TINY, head_width=24, head_depth=2, internal_weight=0.5)
    losses = train(network, 30)
    assert losses[-4]["flow"] < 0.9 * losses[0]["flow"]
    # The trunk learns through the head alone.
    network.internal_weight = 0.0
    network.zero_grad()
    network.loss(LATENTS, VECTOR)["flow"].backward()
    assert network.blocks[0].mlp.proj.weight.grad.abs().max() > 0


def test_the_plain_network_is_that_of_before():
    torch.manual_seed(0)
    network = DiT(LATENT, TOLD, **TINY)
    names = {name.split(".")[0] for name in network.state_dict()}
    assert names == {"input_proj", "time_embed", "condition_proj", "blocks", "final_modulation", "final_proj"}
    losses = train(network, 6)
    assert [set(step) for step in losses] == [{"flow"}] * 6
    assert [step["flow"] for step in losses] == pytest.approx(GOLDEN, rel=1e-4)


def test_other_generators_refuse():
    mar = MAR(LATENT, TOLD, width=16, depth=1, num_heads=2, head_width=16, head_depth=1)
    with pytest.raises(ValueError, match="MAR cannot be guided by a weaker generator"):
        mar.sample_autoguided(NOISE, VECTOR, awake(), VECTOR)
    with pytest.raises(ValueError, match="a DiT is guided by a weaker DiT only, not by a MAR"):
        awake().sample_autoguided(NOISE, VECTOR, mar, VECTOR)
    with pytest.raises(ValueError, match="MAR is guided from null only"):
        mar.guide_from("internal")
    with pytest.raises(ValueError, match="must be null or internal, got 'nothing'"):
        awake().guide_from("nothing")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("embedded")


def generator(tokenizer, condition, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "steps": 2} | options
    network = DiT(tokenizer.bottleneck.spec, condition.spec, **sizes)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return Generator(tokenizer, network, condition, (2, 3)).eval()


def test_a_weaker_generator_has_to_be_of_the_same_tokenizer_and_told_the_same(tokenizer):
    strong = generator(tokenizer, LabelCondition(3, width=8))
    weak = generator(tokenizer, LabelCondition(3, width=4), seed=1, depth=1)
    values = torch.tensor([0, 2])
    plain = strong.sample(values, guidance=1.0)
    assert torch.equal(strong.sample(values, guidance=1.0, autoguide=weak), plain)
    assert not torch.equal(strong.sample(values, guidance=2.0, autoguide=weak), strong.sample(values, guidance=2.0))
    assert not any("guide" in name for name in strong.state_dict())
    with pytest.raises(ValueError, match="is told nothing, the one to be guided label"):
        strong.sample(values, autoguide=generator(tokenizer, NoCondition()))
    strong.space, weak.space = (PictureSpace(tokenizer.bottleneck.spec, channels=64) for _ in range(2))
    strong.check_autoguide(weak)
    weak.space.mean.add_(1)
    with pytest.raises(ValueError, match="works in another space of the latents"):
        strong.check_autoguide(weak)
    strong.space = weak.space
    other = Tokenizer.from_pretrained("embedded")
    other.set_latent_statistics([0.0] * other.latent_channels, [1.0] * other.latent_channels, 5)
    with pytest.raises(ValueError, match=r"is of another tokenizer \(statistics differ\)"):
        strong.check_autoguide(generator(other, LabelCondition(3, width=8)))


def test_the_commands_flags_change_the_images(tokenizer, tmp_path):
    generator(tokenizer, LabelCondition(3, width=8), internal_weight=0.5).save_pretrained(tmp_path / "strong")
    generator(tokenizer, LabelCondition(3, width=8), seed=1).save_pretrained(tmp_path / "weak")

    def image(name, **flags):
        common = {"classes": "1", "device": "cpu", "out": tmp_path / name, "guidance": 3.0}
        sample(generator=tmp_path / "strong", **common, **flags)
        return (tmp_path / name / "000000.png").read_bytes()

    null = image("null", guidance_from="null")
    assert len({null, image("internal", guidance_from="internal"), image("auto", autoguide=tmp_path / "weak")}) == 3
    assert null == image("plain")
    with pytest.raises(ValueError, match="give --autoguide or --guidance_from, not both"):
        image("both", autoguide=tmp_path / "weak", guidance_from="null")
    with pytest.raises(FileNotFoundError, match="missing is not a generator"):
        image("missing", autoguide=tmp_path / "missing")
