"""The code of docs/use.md is run, each use in at most three lines; and the adapters do what they say."""

import ast
import re

import pytest
import torch
from cli_fixtures import REPOSITORY
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.tokenizer.adapters import DiffusersAutoencoder, VisionTower

PAGE = (REPOSITORY / "docs/use.md").read_text(encoding="utf-8")
*USES, IMPORTS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def tokenizer(monkeypatch):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    made = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec, start="zero")).eval().requires_grad_(False)
    for parameter in made.decoder.parameters():  # zero-initialised layers would hide everything
        parameter.add_(torch.randn_like(parameter) * 0.05)
    made.set_latent_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8), 100)
    monkeypatch.setattr(Tokenizer, "from_pretrained", classmethod(lambda cls, path: made))
    return made


def run(use, **names):
    """The names that the block of docs/use.md with the text `use` leaves behind."""
    [block] = [block for block in USES if use in block]
    exec(IMPORTS + block, names)
    return names


def test_each_use_takes_at_most_three_lines():
    assert len(USES) == 4
    for block in USES:
        lines = [line for line in ast.unparse(ast.parse(block)).splitlines() if line.strip()]
        assert len(lines) <= 3


def test_latents_for_a_generator(tokenizer):
    images, generated = torch.rand(2, 3, 16, 24), torch.randn(1, 8, 2, 3)
    names = run("normalize=True", images=images, generated=generated)
    assert torch.equal(names["latents"], tokenizer.encode(images, normalize=True))
    assert torch.equal(names["pictures"], tokenizer.decode(generated, normalized=True))


def test_the_adapter_for_diffusers_gives_the_same_latents_and_pictures(tokenizer):
    images, generated = torch.rand(2, 3, 16, 24), torch.randn(1, 8, 2, 3)
    names = run("DiffusersAutoencoder", images=images, generated=generated)
    torch.testing.assert_close(names["latents"], tokenizer.encode(images, normalize=True), atol=1e-5, rtol=1e-5)
    expected = tokenizer.decode(generated, normalized=True) * 2 - 1
    torch.testing.assert_close(names["pictures"], expected)
    vae = names["vae"]
    encoded = vae.encode(images)
    assert torch.equal(encoded.latent_dist.mode(), encoded.latent_dist.sample(torch.Generator()))
    assert (vae.config.latent_channels, vae.config.shift_factor) == (8, 0)


def test_the_adapter_for_diffusers_without_normalisation_and_with_steps(tokenizer):
    images, latents = torch.rand(1, 3, 16, 16), torch.randn(1, 8, 2, 2)
    plain = DiffusersAutoencoder(tokenizer, normalize=False, steps=3)
    torch.testing.assert_close(
        plain.encode(images * 2 - 1).latent_dist.mean, tokenizer.encode(images), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(plain.decode(latents).sample, tokenizer.decode(latents, steps=3) * 2 - 1)
    assert not torch.equal(plain.decode(latents).sample, tokenizer.decode(latents) * 2 - 1)
    tokenizer.clear_latent_statistics()
    assert DiffusersAutoencoder(tokenizer, normalize=False).normalize is False
    with pytest.raises(ValueError, match="`uniflow stats`"):
        DiffusersAutoencoder(tokenizer)


def test_noise_of_a_decoder_comes_from_the_generator():
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    vae = DiffusersAutoencoder(Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval(), normalize=False)
    torch.nn.init.normal_(vae.tokenizer.decoder.head.final_proj.weight)
    latents = torch.randn(1, 8, 2, 2)
    first, again, other = (vae.decode(latents, torch.Generator().manual_seed(s)).sample for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_vision_tower(tokenizer):
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    names = run("VisionTower", images=images)
    assert names["tokens"].shape == (2, 6, 4096)
    tower = names["tower"]
    assert torch.equal(tower(images), tokenizer.encoder(images).hidden_states[-2])
    assert torch.equal(VisionTower(tokenizer, layer=0)(images), tokenizer.encoder(images).hidden_states[0])
    assert tower.hidden_size == 32
    assert tower(torch.rand(1, 3, tower.image_size, tower.image_size)).shape[1] == tower.num_patches == 64
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        VisionTower(tokenizer, layer=3)


def test_features(tokenizer):
    images = torch.rand(2, 3, 16, 24)
    names = run("tokenizer.features", images=images)
    output = tokenizer.encoder(images)
    torch.testing.assert_close(names["early"], output.feature_map(1))
    torch.testing.assert_close(names["last"], output.feature_map(-1))
