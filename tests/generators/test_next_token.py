"""Next-token prediction: what each code sees, its loss, draws that no batch changes, and whose codes it makes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import ENCODER, REGRESSION
from torch import nn

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, MLPBottleneck, MultiVQBottleneck, QuantizedBottleneck, VQBottleneck
from uniflow.conditions import Conditioning, LabelCondition
from uniflow.core.part import build_part, part_config
from uniflow.core.specs import ConditionSpec, LatentSpec
from uniflow.generators import Generator, LatentGenerator, NextToken, PictureSpace
from uniflow.generators.cached import latent_identity
from uniflow.generators.next_token import draw, likeliest
from uniflow.tools.sample import sample

TOLD = ConditionSpec(8)
TINY = {"width": 16, "depth": 2, "num_heads": 2, "head_depth": 1, "token_input": "both"}
VECTOR = Conditioning(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
NOTHING = Conditioning(torch.zeros(3, 8))
BOTTLENECKS = {
    "fsq": partial(FSQBottleneck, levels=(5, 4)),
    "fsq_two": partial(FSQBottleneck, levels=(5, 4), num_codebooks=2),
    "vq": partial(VQBottleneck, codebook_size=20, codebook_dim=4, kmeans_init=False),
    "multi_vq": partial(MultiVQBottleneck, num_codebooks=2, codebook_size=20, codebook_dim=2, kmeans_init=False),
}


def make_tokenizer(bottleneck):
    torch.manual_seed(0)
    encoder = ENCODER()
    part = bottleneck(encoder.spec)
    tokenizer = Tokenizer(encoder, part, REGRESSION(part.spec)).eval().requires_grad_(False)
    tokenizer.set_latent_statistics([0.3] * part.spec.channels, [0.7] * part.spec.channels, 9)
    for parameter in tokenizer.decoder.parameters():  # zero-initialised layers would hide everything
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return tokenizer


TOKENIZERS = {name: make_tokenizer(bottleneck) for name, bottleneck in BOTTLENECKS.items()}


def drawn(tokenizer, count=3, rows=2, columns=3):
    """Indices of some latents."""
    shape = (count, rows, columns, tokenizer.bottleneck.num_codebooks)
    return torch.randint(tokenizer.codebook_size, shape, generator=torch.Generator().manual_seed(1))


TWO = TOKENIZERS["fsq_two"]
INDICES = drawn(TWO)
LATENTS = TWO.from_indices(INDICES, normalize=True)
NOISE = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(0))


def awake(tokenizer=TWO, condition=TOLD, **options):
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = NextToken(tokenizer.latent_spec, condition, **{**TINY, **options}).eval()
    network.use_tokenizer(tokenizer)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return network


@torch.no_grad()
def loss(network):
    return network.loss(LATENTS, VECTOR)["cross_entropy"].item()


@pytest.mark.parametrize(
    "change",
    [
        *({"width": 24}, {"depth": 3}, {"num_heads": 4}, {"mlp_ratio": 2.0}, {"head_depth": 0}, {"head_depth": 2}),
        *({"token_input": "codes"}, {"token_input": "latents"}),
    ],
    ids=str,
)
def test_every_argument_changes_the_loss(change):
    assert loss(awake()) != pytest.approx(loss(awake(**change)), rel=1e-6)


@pytest.mark.parametrize("change", [{"temperature": 0.3}, {"top_k": 2}, {"top_p": 0.3}, {"guidance": 3.0}], ids=str)
@torch.no_grad()
def test_every_argument_of_sampling_changes_the_samples(change):
    plain, changed = (network.sample(NOISE, VECTOR, NOTHING) for network in (awake(), awake(**change)))
    assert not torch.equal(plain, changed)
    other = awake()
    if "guidance" not in change:
        other.draw_codes(**change)
    given = change.get("guidance")
    assert torch.equal(other.sample(NOISE, VECTOR, NOTHING, guidance=given), changed)


@pytest.mark.parametrize("case", BOTTLENECKS)
@pytest.mark.parametrize("head_depth", [0, 2])
@torch.no_grad()
def test_a_code_sees_earlier_ones_only(case, head_depth):
    tokenizer = TOKENIZERS[case]
    network, indices = awake(tokenizer, head_depth=head_depth), drawn(tokenizer)
    codes = indices.shape[-1]
    before = network(indices, VECTOR).flatten(1, 2)
    assert before.shape == (3, 6 * codes, tokenizer.codebook_size)
    for number in range(6 * codes):
        changed = indices.flatten(1).clone()
        changed[:, number] = (changed[:, number] + 1) % tokenizer.codebook_size
        moved = (network(changed.view_as(indices), VECTOR).flatten(1, 2) - before).abs().amax(dim=(0, 2)) > 1e-5
        # Without a transformer over the codes of a latent these do not see each other.
        first = number + 1 if head_depth else (number // codes + 1) * codes
        assert moved.tolist() == [later >= first for later in range(6 * codes)]


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_all_codes_in_float32():
    network = awake()
    probabilities = network(INDICES, VECTOR).softmax(dim=-1).gather(-1, INDICES.flatten(1, 2)[..., None])
    assert loss(network) == pytest.approx(-probabilities.log().mean().item(), rel=1e-5)
    fresh = NextToken(TWO.latent_spec, TOLD, **TINY)
    fresh.use_tokenizer(TWO)
    assert loss(fresh) == pytest.approx(torch.tensor(20.0).log().item())  # it starts with even odds
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.loss(LATENTS, VECTOR)["cross_entropy"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(loss(network), rel=0.02)
    validated = network.validation_loss(LATENTS, NOISE, torch.full((3,), 0.5), VECTOR)
    assert validated["cross_entropy"] == loss(network)


@pytest.mark.parametrize("case", BOTTLENECKS)
@pytest.mark.parametrize("head_depth", [0, 1])
@torch.no_grad()
def test_the_cache_draws_what_whole_passes_would(case, head_depth, monkeypatch):
    tokenizer = TOKENIZERS[case]
    network, seen = awake(tokenizer, head_depth=head_depth), []
    monkeypatch.setattr("uniflow.generators.next_token.likeliest", lambda logits, k, p: seen.append(logits) or logits)
    noise = torch.randn(3, tokenizer.latent_channels, 2, 3, generator=torch.Generator().manual_seed(4))
    made = tokenizer.to_indices(network.sample(noise, VECTOR, NOTHING), normalized=True)
    whole = network(made, VECTOR).flatten(1, 2)
    torch.testing.assert_close(torch.stack(seen, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_of_one_costs_one_pass_and_is_no_guidance():
    network, sizes = awake(), []
    network.blocks[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = network.sample(NOISE, VECTOR, NOTHING, guidance=1.0)
    assert torch.equal(plain, network.sample(NOISE, VECTOR, VECTOR, guidance=3.0))
    assert sizes == [3] * 6 + [6] * 6
    free = network.sample(NOISE, NOTHING, NOTHING, guidance=1.0)
    assert torch.equal(free, network.sample(NOISE, VECTOR, NOTHING, guidance=0.0))
    assert not torch.equal(free, plain)


@torch.no_grad()
def test_a_sample_depends_on_its_noise_and_not_on_its_batch():
    network = awake(guidance=2.0, temperature=0.8)
    whole = network.sample(NOISE, VECTOR, NOTHING)
    for row in range(3):
        chosen = slice(row, row + 1)
        alone = network.sample(NOISE[chosen], VECTOR.rows(chosen), NOTHING.rows(chosen))
        assert torch.equal(whole[chosen], alone)
    assert not torch.equal(network.sample(NOISE.flip(0), VECTOR, NOTHING), whole)


def test_draws_have_the_probabilities_of_the_logits():
    shares = torch.tensor([0.5, 0.0, 0.2, 0.3])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = shares.log().expand(1000, -1)
    counts = [draw(kept, uniform).bincount(minlength=4).tolist() for kept in (logits, logits * 2)]
    assert counts[0] == [500, 0, 200, 300]
    assert counts[1] == [658, 0, 105, 237]  # squares over their sum, 0.38
    assert draw(logits[:1], torch.ones(1, dtype=torch.float64) - 2**-53).item() == 3
    cases = [(0, 1.0, [0, 2, 3]), (2, 1.0, [0, 3]), (1, 1.0, [0]), (0, 0.5, [0]), (0, 0.51, [0, 3]), (2, 0.9, [0, 3])]
    for top_k, top_p, kept in [*cases, (0, 1e-6, [0]), (9, 1.0, [0, 2, 3])]:
        assert likeliest(shares.log()[None], top_k, top_p).isfinite()[0].nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("case", ["fsq", "multi_vq"])
def test_it_learns_a_few_images_by_heart(case):
    torch.manual_seed(0)
    tokenizer, condition = TOKENIZERS[case], LabelCondition(5, width=8, dropout=0.0)
    indices = drawn(tokenizer, count=5, rows=3)
    latents = tokenizer.from_indices(indices, normalize=True)
    network = NextToken(tokenizer.latent_spec, condition.spec, **{**TINY, "width": 32})
    network.use_tokenizer(tokenizer)
    optimizer = torch.optim.Adam([*network.parameters(), *condition.parameters()], lr=1e-2)
    classes, keep = torch.arange(5), torch.zeros(5, dtype=torch.bool)
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(latents, condition(classes, keep))["cross_entropy"].backward()
        optimizer.step()
    noise = torch.randn(5, tokenizer.latent_channels, 3, 3)
    with torch.no_grad():
        made = network.sample(noise, condition(classes, keep), condition(None, ~keep))
    assert (tokenizer.to_indices(made, normalized=True) == indices).double().mean() > 0.97


@pytest.mark.parametrize("case", BOTTLENECKS)
def test_indices_survive_normalisation_and_the_cache_s_types(case):
    tokenizer = TOKENIZERS[case]
    size, codebooks = tokenizer.codebook_size, tokenizer.bottleneck.num_codebooks
    indices = torch.arange(size).view(1, 4, size // 4, 1).expand(-1, -1, -1, codebooks)
    latents = tokenizer.from_indices(indices, normalize=True)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(tokenizer.to_indices(latents.to(dtype).float(), normalized=True), indices)
    images = torch.rand(2, 3, 30, 40)
    online = tokenizer.to_indices(tokenizer.encode(images, normalize=True), normalized=True)
    assert torch.equal(online, tokenizer.indices(images))


def test_all_codes_of_the_default_levels_survive_float16():
    tokenizer = make_tokenizer(FSQBottleneck)
    indices = torch.arange(tokenizer.codebook_size).view(1, 250, 256, 1)
    latents = tokenizer.from_indices(indices, normalize=True).half().float()
    assert torch.equal(tokenizer.to_indices(latents, normalized=True), indices)


def test_tokens_of_the_condition_are_attended_to():
    network = awake(condition=ConditionSpec(8, token_width=6))
    tokens, mask = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    told, other = (Conditioning(VECTOR.vector, tokens + offset, mask) for offset in (0, 1))
    with torch.no_grad():
        assert network.loss(LATENTS, told) != network.loss(LATENTS, other)
        assert not torch.equal(network.sample(NOISE, told, told), network.sample(NOISE, other, other))


class Bits(QuantizedBottleneck):
    """A third party's: one bit for each channel; its codes are nearest to themselves."""

    def __init__(self, encoder, channels=6):
        super().__init__(encoder, channels, codebook_size=2, num_codebooks=channels, merge=1)

    def quantize(self, tokens):
        return self.lookup(self.nearest(tokens)), {}

    def nearest(self, tokens):
        return (tokens > 0).long()

    def lookup(self, indices):
        return 2.0 * indices - 1


class Inverted(Bits):
    """Whose codes are not nearest to themselves, and which does not say so."""

    def lookup(self, indices):
        return 1 - 2.0 * indices


def test_a_third_party_s_bottleneck_needs_nothing_but_an_inverse():
    tokenizer = make_tokenizer(Bits)
    network = awake(tokenizer)
    indices = drawn(tokenizer)
    latents = tokenizer.from_indices(indices, normalize=True)
    expected = F.cross_entropy(network(indices, VECTOR).flatten(0, 2), indices.flatten())
    torch.testing.assert_close(network.loss(latents, VECTOR)["cross_entropy"], expected)
    with pytest.raises(ValueError, match=r"Inverted\.to_indices does not give back the codes of Inverted\.from_ind"):
        awake(make_tokenizer(Inverted))


def test_what_are_not_codes_is_refused_in_one_line():
    continuous = make_tokenizer(partial(MLPBottleneck, channels=6))
    for spec in (continuous.latent_spec, PictureSpace(TWO.latent_spec, channels=4, block=1).spec, LatentSpec(4, 8)):
        with pytest.raises(
            ValueError, match=r"not codes; it needs a model.tokenizer with a discrete.*LatentSp"
        ) as caught:
            NextToken(spec, TOLD, **TINY)
        assert len(str(caught.value)) <= 320
        assert "\n" not in str(caught.value)
    residual = make_tokenizer(partial(BOTTLENECKS["multi_vq"], residual=True))
    with pytest.raises(ValueError, match="do not say their indices; a generator of codes needs residual false"):
        awake(residual)
    with pytest.raises(ValueError, match=r"made for codebook size and number \(20, 2\), the tokenizer has \(20, 1\)"):
        awake().use_tokenizer(TOKENIZERS["fsq"])
    with pytest.raises(ValueError, match="does not know the codes of its latents"):
        NextToken(TWO.latent_spec, TOLD, **TINY).loss(LATENTS, VECTOR)
    with pytest.raises(ValueError, match="multiple of 4"):
        awake(num_heads=3)
    with pytest.raises(ValueError, match="has no number of steps: leave steps out"):
        awake().sample(NOISE, VECTOR, NOTHING, steps=4)
    for name, value in (("temperature", 0.0), ("temperature", math.nan), ("top_k", -1), ("top_p", 1.5), ("top_p", 0.0)):
        for call in (lambda given: awake().draw_codes(**given), lambda given: awake(**given)):
            with pytest.raises(ValueError, match=f"NextToken.{name} must be an? .*, got"):
                call({name: value})


def test_it_is_rebuilt_from_its_config():
    network = awake(top_k=3)
    again = build_part(part_config(network), LatentGenerator, TWO.latent_spec, TOLD)
    again.load_state_dict(network.state_dict())
    again.use_tokenizer(TWO)
    assert loss(again.eval()) == loss(network)
    assert again.top_k == 3


@pytest.fixture(scope="module")
def model():
    condition = LabelCondition(5, width=8)
    return Generator(TWO, awake(condition=condition.spec), condition, (2, 3)).eval()


def test_a_folder_is_all_that_is_needed(model, tmp_path):
    model.save_pretrained(tmp_path / "generator")
    again = Generator.from_pretrained(tmp_path / "generator")
    assert not any(name.startswith("network.") and "encoder" in name for name in again.state_dict())
    values = torch.tensor([4, 0, 2])
    images = model.sample(values, seed=3)
    torch.testing.assert_close(again.sample(values, seed=3), images)
    torch.testing.assert_close(model.sample(values[1:], seed=3, first=1, batch_size=1), images[1:])
    assert latent_identity(TWO)["spec"] == {"channels": 4, "patch_size": 8}  # as before there were codes
    with pytest.raises(ValueError, match="NextToken cannot be guided by a weaker generator"):
        model.sample(values, autoguide=again)


def test_nothing_is_the_entry_after_the_last_class(model):
    assert model.condition.embedding.weight.shape == (6, 8)
    assert torch.equal(model.unconditional(2).vector, model.condition.embedding.weight[5].expand(2, -1))
    changed = nn.Embedding.from_pretrained(model.condition.embedding.weight.clone())
    changed.weight[5] += 1
    free = model.sample(count=3)
    before, model.condition.embedding = model.condition.embedding, changed
    assert not torch.equal(model.sample(count=3), free)
    model.condition.embedding = before


def test_the_command_s_flags_change_the_images(model, tmp_path):
    model.save_pretrained(tmp_path / "generator")

    def images(name, **flags):
        sample(generator=tmp_path / "generator", classes="1,2", device="cpu", out=tmp_path / name, **flags)
        return (tmp_path / name / "grid.png").read_bytes()

    options = [{}, {"temperature": 0.2}, {"top_k": 2}, {"top_p": 0.2}, {"guidance": 4.0}]
    assert len({images(str(number), **flags) for number, flags in enumerate(options)}) == 5
    with pytest.raises(ValueError, match=r"NextToken\.top_p must be a number in \(0, 1\], got 2\.0"):
        images("refused", top_p=2.0)
