"""Frames merged into one latent: a mean at first, nothing for images and still clips, causal, whole or by pieces."""

from functools import partial

import pytest
import torch
from tiny import ENCODER, FLOW, output_of

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, KLBottleneck, MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.core.part import build_part, part_config

SPEC = ENCODER().spec
CASES = {
    "mlp": partial(MLPBottleneck, channels=6, shortcut=True),
    "kl": partial(KLBottleneck, channels=6),
    "fsq": partial(FSQBottleneck, levels=(7, 7, 5)),
    "vq": partial(VQBottleneck, codebook_size=32, codebook_dim=6, kmeans_init=False),
    "multi_vq": partial(MultiVQBottleneck, num_codebooks=2, codebook_size=16, codebook_dim=3, kmeans_init=False),
}
CONTINUOUS = ("mlp", "kl")


def make(case="mlp", group=2, learned=True):
    """A bottleneck in evaluation mode, and the same one of images."""
    torch.manual_seed(0)
    images = CASES[case](SPEC).eval()
    merging = CASES[case](SPEC, temporal_merge=group).eval()
    missing = merging.load_state_dict(images.state_dict(), strict=False).missing_keys
    assert missing
    assert all(name.startswith("temporal.") for name in missing)
    if learned:
        for parameter in merging.temporal.parameters():  # zeros would hide everything
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return merging, images


def frames(count, clips=2, seed=0):
    return torch.randn(clips * count, SPEC.embed_dim, 2, 3, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def encode(bottleneck, given, count, memory=None):
    with bottleneck.over_time(count, memory):
        return bottleneck(output_of(given))[0]


@torch.no_grad()
def there_and_back(bottleneck, given, count, memory=None):
    """Latents of clips, and the latents of their frames."""
    with bottleneck.over_time(count, memory):
        latents = bottleneck(output_of(given))[0]
        return latents, bottleneck.to_frames(latents)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("learned", [False, True])
def test_images_and_first_frames_and_still_clips_are_as_without_it_bit_for_bit(case, learned):
    merging, images = make(case, learned=learned)
    given = frames(5)
    of_images = encode(images, given, 5)  # takes clips for images
    assert torch.equal(of_images, encode(images, given, 1))
    assert torch.equal(encode(merging, given, 1), of_images)
    assert torch.equal(merging.to_frames(of_images), of_images)
    latents, back = there_and_back(merging, given, 5)
    for found in (latents.unflatten(0, (2, 3)), back.unflatten(0, (2, 5))):
        assert torch.equal(found[:, 0], of_images.unflatten(0, (2, 5))[:, 0])
    assert not torch.equal(back, of_images)
    still = given[:2].repeat_interleave(4, dim=0)
    latents, back = there_and_back(merging, still, 4)
    assert torch.equal(back, encode(images, still, 1))
    assert torch.equal(latents, encode(images, given[:2].repeat_interleave(3, dim=0), 1))


@pytest.mark.parametrize("group", [2, 3])
def test_it_starts_as_mean_and_repetition(group):
    merging, images = make(group=group, learned=False)
    given = frames(1 + 2 * group)
    latents, back = there_and_back(merging, given, 1 + 2 * group)
    clips = encode(images, given, 1).unflatten(0, (2, -1))
    means = clips[:, 1:].unflatten(1, (2, group)).mean(dim=2)
    expected = torch.cat([clips[:, :1], means], dim=1)
    torch.testing.assert_close(latents, expected.flatten(0, 1), atol=1e-6, rtol=0)
    repeated = torch.cat([expected[:, :1], expected[:, 1:].repeat_interleave(group, dim=1)], dim=1)
    torch.testing.assert_close(back, repeated.flatten(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("group", "numbers"), [(2, (1, 2, 2, 3, 3)), (3, (1, 2, 2, 2, 3)), (1, (1, 2, 3, 4, 5))])
def test_any_number_of_frames(case, group, numbers):
    bottleneck = make(case, group)[0] if group > 1 else CASES[case](SPEC).eval()
    assert bottleneck.frames_per_latent == group
    for count, number in enumerate(numbers, start=1):
        latents, back = there_and_back(bottleneck, frames(count), count)
        assert latents.shape == (2 * number, bottleneck.spec.channels, 2, 3)
        assert back.shape == (2 * count, bottleneck.spec.channels, 2, 3)
    # A group that is not full is one that stands still at its end.
    filled = torch.cat([frames(4, 1), frames(4, 1)[-1:].expand(1 + 5 * group - 4, -1, -1, -1)])
    own, longer = there_and_back(bottleneck, frames(4, 1), 4), there_and_back(bottleneck, filled, len(filled))
    for found, expected in zip(own, longer, strict=True):
        torch.testing.assert_close(found, expected[: len(found)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CONTINUOUS)
def test_nothing_sees_what_comes_later_nor_other_clips(case):
    merging, _ = make(case)
    given = frames(7)
    changed = given.clone()
    changed[7 + 3] *= -1  # of the second clip: the first of the frames 3 and 4, whose latent is number 2
    before, after = (there_and_back(merging, values, 7) for values in (given, changed))
    moved = [(a - b).abs().amax(dim=(1, 2, 3)) for a, b in zip(before, after, strict=True)]
    latents, back = moved[0].unflatten(0, (2, 4)), moved[1].unflatten(0, (2, 7))
    assert latents[0].max() == back[0].max() == 0
    assert (latents[1] > 1e-4).tolist() == [False, False, True, False]
    # The next frames are told apart by what has changed since the latent before.
    assert (back[1] > 1e-4).tolist() == [False, False, False, True, True, True, True]
    # The order within a group is in its latent, and comes back.
    swapped = given.unflatten(0, (2, 7))[:, [0, 2, 1, 3, 4, 5, 6]].flatten(0, 1)
    assert (encode(merging, swapped, 7) - before[0]).abs().amax(dim=(1, 2, 3))[1] > 1e-4
    assert (before[1][1] - before[1][2]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [(1, 2, 2, 1), (3, 3), (3, 2, 1), (5, 1), (1, 4, 1), (6,)])
def test_a_clip_piece_by_piece_is_the_whole_clip(sizes):
    merging, _ = make()
    given, memory = frames(6, 1), {}
    if sizes == (3, 3):  # the last piece may end within a group
        given = frames(7, 1)[:6]
    pieces = [there_and_back(merging, piece, len(piece), memory) for piece in given.split(sizes)]
    whole = there_and_back(merging, given, 6)
    for found, expected in zip(map(torch.cat, zip(*pieces, strict=True)), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert all(tensor.shape[1] <= 1 for kept in memory.values() for tensor in kept)  # bounded


@pytest.mark.parametrize("case", CASES)
def test_codes_stay_codes_and_every_argument_counts(case):
    merging, _ = make(case)
    given = frames(5)
    latents, back = there_and_back(merging, given, 5)
    if case not in CONTINUOUS:
        with merging.over_time(5):
            indices = merging.indices(output_of(given))
        assert indices.shape[0] == 6
        assert torch.equal(merging.from_indices(indices), latents)
    in_threes = there_and_back(make(case, 3)[0], given, 5)[1]
    assert not torch.equal(in_threes, back)
    for part in (merging.temporal.into, merging.temporal.out_of):
        part.projection.weight.data.zero_()
        changed = there_and_back(merging, given, 5)
        assert not torch.equal(changed[1], back)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_new_weight(case):
    torch.manual_seed(0)
    bottleneck = CASES[case](SPEC, temporal_merge=2).train()
    target = torch.randn(10, bottleneck.spec.channels, 2, 3)

    def gradients():
        bottleneck.zero_grad()
        with bottleneck.over_time(5):
            latents, losses = bottleneck(output_of(frames(5)))
            loss = (bottleneck.to_frames(latents) - target).square().mean() + sum(losses.values())
        loss.backward()
        return {name for name, p in bottleneck.temporal.named_parameters() if p.grad.abs().sum() > 0}

    assert gradients() == {"into.projection.weight", "out_of.projection.weight"}  # the others when these have moved
    for part in (bottleneck.temporal.into, bottleneck.temporal.out_of):
        torch.nn.init.normal_(part.projection.weight, std=0.1)
    assert gradients() == {name for name, _ in bottleneck.temporal.named_parameters()}


def test_low_precision_keeps_types_and_still_clips():
    merging, images = make()
    given = frames(3)
    merged = make("kl")[0].to(torch.bfloat16)
    latents, back = there_and_back(merged, given.to(torch.bfloat16), 3)
    assert latents.dtype == back.dtype == torch.bfloat16
    still = given[:2].repeat_interleave(3, dim=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(there_and_back(merging, still, 3)[1], encode(images, still, 1))
        rounded = there_and_back(merging, given, 3)[1]
    exact = there_and_back(merging, given, 3)[1]
    assert 1e-4 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_does_not_fit_is_one_line():
    merging, _ = make()
    with pytest.raises(ValueError, match=r"^10 images are not whole clips of 4 frames$"):
        encode(merging, frames(5), 4)
    with merging.over_time(5), pytest.raises(ValueError, match=r"^10 latents are not those of whole clips: a clip"):
        merging.to_frames(torch.zeros(10, 6, 2, 3))
    memory = {}
    there_and_back(merging, frames(2, 1), 2, memory)
    with merging.over_time(3, memory), pytest.raises(ValueError, match=r"whole clips: 3 further frames of one have 2$"):
        merging.to_frames(torch.zeros(3, 6, 2, 3))
    with pytest.raises(ValueError, match=r"ended with 1 of the 2 frames of a latent: pieces but the last need 1 \+ 2"):
        encode(merging, frames(2, 1), 2, memory)
    with pytest.raises(ValueError, match=r"^a clip has 1 frame or more, not 0$"):
        encode(merging, frames(1), 0)
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="temporal_merge must be an integer >= 1"):
            MLPBottleneck(SPEC, temporal_merge=bad)


def test_saved_and_loaded_and_older_ones_as_before(tmp_path):
    torch.manual_seed(0)
    encoder = ENCODER()
    merging, images = make()
    tokenizer = Tokenizer(encoder, merging, FLOW(merging.spec, start="zero", shortcut=True)).eval()
    for parameter in tokenizer.decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.frames_per_latent == 2
    clips = torch.randint(0, 256, (10, 3, 20, 30), dtype=torch.uint8)
    decoded = []
    with torch.no_grad():
        for model in (tokenizer, loaded):
            with model.over_time(5):
                latents = model.encode(clips)
                assert latents.shape == (6, 6, 3, 4)
                decoded.append(model.decode(latents))
                assert torch.equal(model.reconstruct(clips), decoded[-1][..., :20, :30])
                torch.testing.assert_close(model.decode(latents, tile=2, overlap=0, global_context=True), decoded[-1])
        assert decoded[0].shape == (10, 3, 24, 32)
        assert torch.equal(*decoded)
        assert not torch.equal(decoded[0], loaded.decode(loaded.encode(clips)))
        loaded.set_latent_statistics([0.1] * 6, [2.0] * 6, 5)
        with loaded.over_time(5):
            normal = loaded.encode(clips, normalize=True)
            torch.testing.assert_close(loaded.decode(normal, normalized=True), decoded[0], atol=1e-5, rtol=0)
            with pytest.raises(ValueError, match=r"10 latents are not those of whole clips: a clip of 5 frames has 3"):
                loaded.decode(torch.zeros(10, 6, 3, 4))
    config = part_config(images)
    assert config["init_args"].pop("temporal_merge") == 1  # as earlier versions saved it
    old = build_part(config, MLPBottleneck, SPEC)
    old.load_state_dict(images.state_dict())
    assert torch.equal(encode(old, frames(5), 5), encode(images, frames(5), 1))
