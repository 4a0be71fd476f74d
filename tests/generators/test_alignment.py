"""Predicting whole latents from a network's tokens: what is read, the loss, and what is refused."""

import pytest
import torch

from uniflow.conditions import Conditioning
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.generators import MAR, DiT, FeatureAlignment, PictureSpace

LATENT, TOLD = LatentSpec(8, 4), ConditionSpec(8)
TINY = {"width": 16, "depth": 3, "num_heads": 2}
LATENTS = torch.randn(3, 8, 2, 3, generator=torch.Generator().manual_seed(1))
VECTOR = Conditioning(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))


def aligned(network, **options):
    torch.manual_seed(3)
    alignment = FeatureAlignment(8, 16, hidden=12, **options)
    alignment.attach(network)
    torch.manual_seed(4)
    sum(network.loss(LATENTS, VECTOR).values())
    return alignment.loss(LATENTS)


def network(kind=DiT):
    torch.manual_seed(0)
    made = kind(LATENT, TOLD, **TINY)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize("kind", [DiT, MAR])
def test_the_loss_trains_the_blocks_up_to_the_one_that_is_read(kind):
    model = network(kind)
    aligned(model, depth=2).backward()
    reached = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in model.blocks]
    assert reached == [True, True, False]


def test_weight_and_depth_change_the_loss():
    first = aligned(network()).item()
    assert 0 < first < 1
    assert aligned(network(), weight=1.0).item() == pytest.approx(2 * first)
    assert aligned(network(), depth=3).item() != pytest.approx(first, rel=1e-4)


def test_the_loss_is_one_less_the_cosine_under_autocast_too():
    alignment, model = FeatureAlignment(8, 16, weight=1.0), network()
    alignment.attach(model)
    tokens = []
    model.blocks[1].register_forward_hook(lambda block, given, output: tokens.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(LATENTS, VECTOR)
        loss = alignment.loss(LATENTS)
        predicted = alignment.head(tokens[0]).double()
    target = LATENTS.flatten(2).transpose(1, 2).double()
    cosine = (predicted * target).sum(-1) / predicted.norm(dim=-1) / target.norm(dim=-1)
    assert loss.item() == pytest.approx(1 - cosine.mean().item(), rel=1e-5)


def test_a_space_of_blocks_shows_all_channels_of_each_block():
    latents = torch.randn(2, 8, 4, 6)
    space = PictureSpace(LATENT, channels=4, block=2)
    assert space.features(latents).shape == (2, space.feature_channels, 2, 3) == (2, 32, 2, 3)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="depth must be at most 3, the blocks of DiT, got 4"):
        FeatureAlignment(8, 16, depth=4).attach(network())
