"""Sources of features: what they give is what the network behind them gives."""

import pytest
import torch

from uniflow import Tokenizer
from uniflow.encoders import SceneViT
from uniflow.features import BlankSource, EncoderSource, LatentSource, TokenizerSource

IMAGES = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("embedded")


@pytest.mark.parametrize(("layers", "blocks"), [("last", [5]), ("all", range(6)), (2, [4, 5]), ([0, -2], [0, 4])])
@torch.no_grad()
def test_an_encoder_source_gives_the_chosen_blocks(layers, blocks):
    encoder = SceneViT()
    source, expected = EncoderSource(lambda: encoder, layers), encoder(IMAGES)
    features = source(IMAGES)
    assert source.spec.num_layers == len(features.hidden_states) == len(features.prefix_tokens) == len(blocks)
    for given, block in zip(features.hidden_states, blocks, strict=True):
        torch.testing.assert_close(given, expected.hidden_states[block], rtol=0, atol=0)
    assert features.hidden_states[0].shape[-1] == source.spec.embed_dim
    assert features.grid == (8, 6)


@pytest.mark.parametrize("layers", [9, [7], ["embeddings"], []])
def test_a_block_that_does_not_exist_is_refused(layers):
    with pytest.raises(ValueError, match="layers"):
        EncoderSource(SceneViT, layers)


@torch.no_grad()
def test_a_tokenizer_source_gives_the_students_features(tokenizer):
    source = TokenizerSource("embedded", "all")
    expected = tokenizer.features(IMAGES, range(source.spec.num_layers))
    features = source(IMAGES)
    for layer, feature_map in enumerate(expected):
        torch.testing.assert_close(features.feature_map(layer), feature_map)


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_a_latent_source_gives_the_latents_as_tokens(tokenizer, normalize):
    source = LatentSource("embedded", normalize)
    features, latents = source(IMAGES), tokenizer.encode(IMAGES, normalize=normalize)
    torch.testing.assert_close(features.feature_map(), latents)
    assert features.prefix_tokens[0].shape == (2, 0, source.spec.embed_dim)
    assert (source.spec.embed_dim, source.spec.patch_size) == (tokenizer.latent_channels, tokenizer.patch_size)


def test_latents_without_statistics_cannot_be_normalised(tokenizer, tmp_path):
    tokenizer.clear_latent_statistics()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no latent statistics: measure them"):
        LatentSource(str(tmp_path), normalize=True)


def test_a_blank_source_says_nothing_about_the_image():
    source = BlankSource(patch_size=16, embed_dim=4, num_layers=2)
    features = source(IMAGES)
    assert features.grid == (4, 3)
    assert [tuple(state.shape) for state in features.hidden_states] == [(2, 12, 4)] * 2
    assert features.hidden_states[0].unique().tolist() == [1.0]
