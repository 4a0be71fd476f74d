"""Which hidden states a bottleneck reads, how they are normalised and joined."""

from functools import partial

import pytest
import torch
from tiny import ENCODER, FLOW, fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import KLBottleneck, LayerFusion, MLPBottleneck
from uniflow.bottleneck.layers import layer_indices, normalize_tokens
from uniflow.core.specs import EncoderOutput

SPEC = ENCODER().spec
D = SPEC.embed_dim


def output(seed=0):
    """Three layers that differ in mean and size, as a ViT's do, on a grid of 2 x 4."""
    generator = torch.Generator().manual_seed(seed)
    states = [10.0**k * torch.randn(2, 8, D, generator=generator) + k for k in range(3)]
    embeddings = 0.1 * torch.randn(2, 8, D, generator=generator)
    return EncoderOutput(tuple(states), tuple(s[:, :0] for s in states), (2, 4), embeddings)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", [2]),
        ("all", [0, 1, 2]),
        (1, [2]),
        (2, [1, 2]),
        ([0, -1], [0, 2]),
        ([2, 0], [2, 0]),
        (["embeddings", -1], [3, 2]),
    ],
)
def test_layers_by_name_number_and_index(layers, expected):
    assert list(layer_indices(layers, 3)) == expected


@pytest.mark.parametrize(
    "layers",
    [0, 4, [], [3], [-4], [0, 0], [0, -3], ["embeddings", "embeddings"], ["first"], [True], True, "first", 1.5, None],
)
def test_other_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers must be last, all, .* got") as caught:
        layer_indices(layers, 3)
    assert "\n" not in str(caught.value)


def test_the_last_layer_is_read_as_it_is():
    given = output()
    assert torch.equal(LayerFusion(SPEC)(given).flatten(1, 2), given.hidden_states[-1])


def test_token_normalisation_is_a_layer_norm():
    given = output()
    fused = LayerFusion(SPEC, [0, 2], normalize="token")(given).flatten(1, 2)
    expected = [torch.nn.functional.layer_norm(given.hidden_states[i], (D,)) for i in (0, 2)]
    torch.testing.assert_close(fused, torch.cat(expected, dim=-1))


def test_layer_normalisation_takes_what_was_measured():
    given, fusion = output(), LayerFusion(SPEC, [0, 2])
    states = torch.stack(given.hidden_states)
    means = states.flatten(1, 2).mean(dim=1)
    stds = (states.flatten(1, 2) - means[:, None]).square().mean(dim=(1, 2)).sqrt()
    fusion.calibrate(means, stds)
    fused = fusion(given).flatten(0, 2)
    torch.testing.assert_close(fused.mean(dim=0), torch.zeros(2 * D), atol=1e-4, rtol=0)
    for part in fused.chunk(2, dim=-1):
        assert part.square().mean().item() == pytest.approx(1, abs=1e-4)
    # One number for a layer: what is large in a token stays large.
    ratio = fused[0, :D] / (given.hidden_states[0][0, 0] - means[0])
    torch.testing.assert_close(ratio, ratio[:1].expand(D), rtol=1e-3, atol=0)


def test_sums_and_trained_weights():
    given = output()
    parts = [normalize_tokens(s) for s in given.hidden_states[1:]]
    total = LayerFusion(SPEC, 2, "sum", "token")
    torch.testing.assert_close(total(given).flatten(1, 2), (parts[0] + parts[1]) / 2**0.5)
    learned = LayerFusion(SPEC, 2, "learned", "token")
    assert torch.equal(learned(given), total(given))
    learned.weights.data = torch.tensor([0.0, 2.0])
    torch.testing.assert_close(learned(given).flatten(1, 2), 2 * parts[1] / 2**0.5)


@pytest.mark.parametrize("case", [{"fuse": "mean"}, {"normalize": "batch"}])
def test_other_words_are_refused(case):
    with pytest.raises(ValueError, match=f"{next(iter(case))} must be .* got '{next(iter(case.values()))}'"):
        LayerFusion(SPEC, "all", **case)


@pytest.mark.parametrize("make", [MLPBottleneck, KLBottleneck])
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize(
    ("layers", "fuse"), [("all", "concat"), (2, "sum"), ([0, -1], "learned"), (["embeddings", 1], "concat")]
)
def test_every_way_of_reading_gives_other_latents_and_gradients(make, merge, layers, fuse):
    torch.manual_seed(0)
    bottleneck = make(SPEC, channels=4, merge=merge, layers=layers, fuse=fuse, shortcut=True)
    given = output()
    latents, _ = bottleneck(given)
    assert latents.shape == (2, 4, 2 // merge, 4 // merge)
    latents.square().mean().backward()
    # Behind a zero output the projection's first layer has no gradient yet.
    assert all(p.grad is not None for name, p in bottleneck.named_parameters() if not name.startswith("fc1"))
    assert not torch.equal(latents, make(SPEC, channels=4, merge=merge)(given)[0])


def test_the_shortcut_starts_alone():
    bottleneck = MLPBottleneck(SPEC, channels=4, layers="all", shortcut=True)
    tokens = bottleneck.tokens(output())
    expected = bottleneck.shortcut(tokens).permute(0, 3, 1, 2)
    assert torch.equal(bottleneck(output())[0], expected)
    bottleneck.fc2.weight.data.normal_()
    assert not torch.equal(bottleneck(output())[0], expected)


def test_training_measures_the_layers_before_its_first_step_and_the_tokenizer_keeps_them(tmp_path):
    task = tiny_task(bottleneck=partial(MLPBottleneck, channels=8, layers="all"), decoder=FLOW)
    fit(task, tiny_scenes(), tmp_path, steps=2)
    fusion = task.tokenizer.bottleneck.fusion
    assert not torch.equal(fusion.scale, torch.ones(3))
    task.tokenizer.save_pretrained(tmp_path / "tokenizer")
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert torch.equal(again.encode(images), task.tokenizer.eval().encode(images))
    assert again.bottleneck.init_args == task.tokenizer.bottleneck.init_args


def test_embeddings_are_what_enters_the_first_block():
    encoder = ENCODER().eval()
    images = torch.rand(2, 3, 16, 24)
    output = encoder(images)
    assert output.embeddings.shape == (2, 6, D)
    fused = LayerFusion(encoder.spec, ["embeddings", -1])(output).flatten(1, 2)
    assert torch.equal(fused, torch.cat([output.embeddings, output.hidden_states[-1]], dim=-1))
    # No token sees another patch before the first block (the stem of this encoder reaches one patch further).
    changed = images.clone()
    changed[..., 16:] = 0
    moved = (encoder(changed).embeddings - output.embeddings).abs().amax(dim=(0, 2)).view(2, 3) > 1e-6
    assert not moved[:, 0].any()
    bare = EncoderOutput(output.hidden_states, output.prefix_tokens, output.grid)
    with pytest.raises(ValueError, match="this encoder gives no embeddings"):
        LayerFusion(encoder.spec, ["embeddings"])(bare)
