"""The part of the latents that shows in the picture."""

import pytest
import torch

from uniflow import Tokenizer
from uniflow.conditions import LabelCondition
from uniflow.core.specs import LatentSpec
from uniflow.generators import DiT, Generator, LatentSpace, PictureSpace
from uniflow.layers.grid import to_tokens, unpatchify

LATENT = LatentSpec(channels=6, patch_size=4)


def pairs(count=256, grid=4, seed=0):
    """Latents whose first three channels paint and vary little; the other three vary much and do not show."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 0.2, 0.3, 3.0, 3.0, 3.0])[:, None, None]
    latents = spread * torch.randn(count, 6, grid, grid, generator=draw) + 0.5
    paint = torch.randn(3, 48, generator=torch.Generator().manual_seed(9))
    patches = to_tokens(latents[:, :3]) @ paint
    return latents, unpatchify(patches, 4, (grid, grid))


def fitted(**options):
    space = PictureSpace(LATENT, **{"channels": 3, "block": 1, **options})
    assert not space.is_fitted
    space.fit([pairs()])
    assert space.is_fitted
    return space


@pytest.mark.parametrize("block", [1, 2])
def test_what_paints_is_kept_and_the_rest_becomes_its_mean(block):
    space = fitted(channels=3 * block**2, block=block)
    latents, _ = pairs(seed=1)
    made = space(latents)
    assert made.shape == (256, 3 * block**2, 4 // block, 4 // block)
    assert made.square().mean() == pytest.approx(1, abs=0.1)
    back = space.inverse(made)
    torch.testing.assert_close(back[:, :3], latents[:, :3], atol=0.03, rtol=0)
    assert back[:, 3:].std() < 0.2 * latents[:, 3:].std()


def test_all_directions_lose_nothing():
    space = fitted(channels=6)
    latents, _ = pairs(seed=1)
    torch.testing.assert_close(space.inverse(space(latents)), latents, atol=1e-4, rtol=0)


def test_directions_are_sorted_by_their_share_of_the_pixels():
    variances = to_tokens(fitted(channels=6, floor=0.1)(pairs(seed=1)[0])).flatten(0, 1).var(0)
    assert (variances.diff() < 0.05 * variances[0]).all()
    assert variances[0] > 5 * variances[3]
    torch.testing.assert_close(variances[3:], variances[3:].mean().expand(3), rtol=0.2, atol=0)
    assert variances[3] > 5 * to_tokens(fitted(channels=6, floor=1e-3)(pairs(seed=1)[0])).flatten(0, 1).var(0)[3]


def test_neither_batches_nor_order_matter():
    latents, images = pairs()
    other = PictureSpace(LATENT, channels=3, block=1)
    other.fit([(latents[40:], images[40:]), (latents[:40], images[:40])])
    torch.testing.assert_close(other.back @ other.into, fitted().back @ fitted().into, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="channels must be at most 6, the directions of a block of 1 x 1 latents"):
        PictureSpace(LATENT, channels=7, block=1)
    with pytest.raises(ValueError, match=r"latents of 4 x 3 are not made of blocks of 2 x 2; .* multiples of 8 pixels"):
        PictureSpace(LATENT, channels=7, block=2)(torch.zeros(1, 6, 4, 3))


def test_the_plain_space_changes_nothing():
    latents, _ = pairs()
    space = LatentSpace(LATENT)
    assert space(latents) is space.inverse(latents) is latents
    assert space.spec == LATENT
    assert space.grid(4, 3) == (4, 3)
    assert not space.state_dict()


def test_a_generator_is_saved_with_its_space(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained("embedded")
    space = PictureSpace(tokenizer.bottleneck.spec, channels=8, block=2)
    images = torch.rand(16, 3, 32, 32)
    space.fit([(tokenizer.encode(images, normalize=True).detach(), images)])
    condition = LabelCondition(3, width=8)
    network = DiT(space.spec, condition.spec, width=16, depth=1, num_heads=2, steps=2)
    model = Generator(tokenizer, network, condition, (2, 4), space).eval()
    made = model.sample(torch.tensor([0, 1]), seed=1)
    assert made.shape == (2, 3, 16, 32)
    model.save_pretrained(tmp_path / "generator")
    again = Generator.from_pretrained(tmp_path / "generator")
    assert torch.equal(again.sample(torch.tensor([0, 1]), seed=1), made)
    again.space.back.mul_(2)
    assert not torch.equal(again.sample(torch.tensor([0, 1]), seed=1), made)
    with pytest.raises(ValueError, match="the generator makes"):
        Generator(tokenizer, network, condition, (2, 4))
