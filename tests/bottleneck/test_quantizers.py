"""Discrete bottlenecks: what they compute, and what each setting changes."""

import sys
from functools import partial

import pytest
import torch
from tiny import ENCODER, output_of

from uniflow.bottleneck import FSQBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.bottleneck.codebook import Codebook

SPEC = ENCODER().spec
VQ = partial(VQBottleneck, SPEC, codebook_size=16, codebook_dim=4)
MULTI = partial(MultiVQBottleneck, SPEC, num_codebooks=4, codebook_size=16, codebook_dim=3)


def features(seed=0):
    return torch.randn(4, SPEC.embed_dim, 4, 4, generator=torch.Generator().manual_seed(seed))


def codebook(size=8, dim=3, **kwargs):
    torch.manual_seed(0)
    defaults = {"decay": 0.9, "learnable": False, "cosine": False, "kmeans_init": False, "dead_code_threshold": 0.0}
    return Codebook(size, dim, user="Test", **({"commitment_weight": 0.25} | defaults | kwargs))


def run(make, steps=4):
    """Latents in evaluation, and losses, after some steps of training."""
    torch.manual_seed(0)
    bottleneck = make()
    for seed in range(steps):
        _, losses = bottleneck(output_of(features(seed)))
    return bottleneck.eval()(output_of(features()))[0].detach(), {name: loss.item() for name, loss in losses.items()}


def test_fsq_numbers_every_combination_of_levels_once():
    bottleneck = FSQBottleneck(SPEC, levels=(3, 4, 5), num_codebooks=2)
    assert (bottleneck.codebook_size, bottleneck.num_codebooks, bottleneck.spec.channels) == (60, 2, 6)
    indices = torch.stack([torch.arange(60), torch.arange(60).flip(0)], dim=-1).view(1, 1, 60, 2)
    latents = bottleneck.from_indices(indices)[0, :, 0].T
    assert latents.abs().max() == 1
    assert len(latents[:, :3].unique(dim=0)) == 60
    assert torch.equal(latents[:, :3], latents[:, 3:].flip(0))
    assert [len(latents[:, channel].unique()) for channel in range(3)] == [3, 4, 5]
    torch.testing.assert_close(latents[:, 0].unique(), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(latents[:, 1].unique(), torch.tensor([-1.0, -0.5, 0.0, 0.5]))


def test_fsq_rounds_the_bounded_projection():
    bottleneck = FSQBottleneck(SPEC, levels=(5, 3)).eval()
    # Odd levels: half_l = (L - 1) (1 + 0.001) / 2, no shift; rounded, and divided by L // 2.
    bounded = torch.tanh(bottleneck.project(output_of(features()))) * torch.tensor([2.0, 1.0]) * 1.001
    expected = (bounded.round() / torch.tensor([2.0, 1.0])).permute(0, 3, 1, 2)
    torch.testing.assert_close(bottleneck(output_of(features()))[0], expected)


def test_vq_takes_the_nearest_entry():
    bottleneck = VQ()
    bottleneck(output_of(features()))
    entries = bottleneck.codebook.quantizer.codebook
    tokens = bottleneck.project(output_of(features(1)))
    expected = torch.cdist(tokens.flatten(0, 2), entries).argmin(dim=1).view(4, 4, 4, 1)
    assert torch.equal(bottleneck.indices(output_of(features(1))), expected)


def test_gradients_pass_straight_through_and_the_commitment_pulls_vectors():
    book = codebook(commitment_weight=0.5)
    vectors = torch.randn(5, 3, requires_grad=True)
    codes, losses = book(vectors)
    weights = torch.randn(5, 3)
    (gradient,) = torch.autograd.grad((codes * weights).sum(), vectors)
    assert torch.equal(gradient, weights)
    assert losses.keys() == {"commitment"}
    torch.testing.assert_close(losses["commitment"], 0.5 * (vectors - codes).square().mean())
    (gradient,) = torch.autograd.grad(losses["commitment"], vectors)
    torch.testing.assert_close(gradient, 0.5 * 2 * (vectors - codes) / vectors.numel())


def test_without_memory_entries_are_the_means_of_their_vectors():
    book = codebook(decay=0.0)
    vectors = torch.randn(200, 3)
    chosen = book.nearest(vectors)
    book(vectors)
    for entry in chosen.unique():
        torch.testing.assert_close(book.lookup(entry), vectors[chosen == entry].mean(dim=0), atol=1e-3, rtol=1e-3)


def test_a_learnable_codebook_is_pulled_by_its_own_loss_alone():
    book = codebook(learnable=True)
    start = book.quantizer.codebook.detach().clone()
    vectors = torch.randn(50, 3, requires_grad=True)
    codes, losses = book(vectors)
    assert torch.equal(book.quantizer.codebook, start)  # no moving average
    torch.testing.assert_close(losses["codebook"], (vectors - codes).square().mean())
    (entries,) = book.parameters()
    [vector_gradient, none] = torch.autograd.grad(losses["commitment"], [vectors, entries], allow_unused=True)
    assert none is None
    assert vector_gradient.abs().sum() > 0
    [none, gradient] = torch.autograd.grad(losses["codebook"], [vectors, entries], allow_unused=True)
    assert none is None
    used = gradient[0].abs().sum(dim=1) > 0
    assert used.nonzero().flatten().tolist() == book.nearest(vectors).unique().tolist()


def test_cosine_compares_directions():
    book = codebook(cosine=True)
    vectors = torch.randn(50, 3)
    codes, _ = book(vectors)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(50))
    assert torch.equal(book.nearest(vectors), book.nearest(7 * vectors))
    entries = book.quantizer.codebook
    assert torch.equal(book.nearest(vectors), (vectors @ entries.T).argmax(dim=1))


def test_kmeans_puts_the_entries_where_the_first_vectors_are():
    centres = torch.tensor([[10.0, 0, 0], [0, 10, 0]])
    vectors = centres.repeat(20, 1) + 0.01 * torch.randn(40, 3)
    book = codebook(size=2, kmeans_init=True)
    codes, _ = book(vectors)
    torch.testing.assert_close(codes, centres.repeat(20, 1), atol=0.02, rtol=0)
    state = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    again = codebook(size=2, kmeans_init=True)
    again.load_state_dict(state)
    again(-vectors)
    assert (again.quantizer.codebook > -2).all()  # moved a little, not begun anew


def test_dead_entries_are_replaced_by_vectors_of_the_batch():
    far = 100 + torch.randn(64, 3)
    kept, replaced = codebook(decay=0.5), codebook(decay=0.5, dead_code_threshold=0.4)
    for _ in range(4):
        kept(far)
        replaced(far)
    assert len(kept.nearest(far).unique()) == 1
    assert len(replaced.nearest(far).unique()) > 4
    distances = torch.cdist(replaced.quantizer.codebook, far).min(dim=1).values
    assert distances.max() < 5


def test_codebooks_share_the_channels_of_a_latent():
    bottleneck = MULTI()
    bottleneck(output_of(features()))
    bottleneck.eval()
    assert bottleneck.spec.channels == 12
    indices = bottleneck.indices(output_of(features(1)))
    latents, _ = bottleneck(output_of(features(1)))
    for number, book in enumerate(bottleneck.codebooks):
        part = latents[:, 3 * number : 3 * number + 3].permute(0, 2, 3, 1)
        assert torch.equal(book.lookup(indices[..., number]), part)
        tokens = bottleneck.project(output_of(features(1)))[..., 3 * number : 3 * number + 3]
        assert torch.equal(book.nearest(tokens), indices[..., number])


def test_residual_codebooks_add_up_and_each_brings_latents_nearer():
    bottleneck = MULTI(residual=True)
    for _ in range(20):
        bottleneck(output_of(features()))
    bottleneck.eval()
    assert bottleneck.spec.channels == 3
    tokens, indices = bottleneck.project(output_of(features())), bottleneck.indices(output_of(features()))
    rest, errors = tokens, [tokens.square().mean().item()]
    for number, book in enumerate(bottleneck.codebooks):
        assert torch.equal(book.nearest(rest), indices[..., number])
        rest = rest - book.lookup(indices[..., number])
        errors.append(rest.square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    torch.testing.assert_close(bottleneck(output_of(features()))[0].permute(0, 2, 3, 1), tokens - rest)
    given = features().requires_grad_()
    weights = torch.randn(4, 3, 4, 4)
    (through,) = torch.autograd.grad((bottleneck.train()(output_of(given))[0] * weights).sum(), given)
    (direct,) = torch.autograd.grad((bottleneck.project(output_of(given)).permute(0, 3, 1, 2) * weights).sum(), given)
    torch.testing.assert_close(through, direct)


CHANGES = [
    {"codebook_size": 8},
    {"codebook_dim": 5},
    {"commitment_weight": 0.5},
    {"decay": 0.5},
    {"learnable": True},
    {"cosine": True},
    {"kmeans_init": False},
    {"dead_code_threshold": 3.0},
    {"merge": 2},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("make", [VQ, MULTI], ids=["vq", "multi_vq"])
def test_every_setting_changes_latents_or_losses(make, change):
    assert same(run(make), run(make))
    assert not same(run(partial(make, **change)), run(make))


@pytest.mark.parametrize("change", [{"num_codebooks": 2}, {"residual": True}], ids=str)
def test_settings_of_several_codebooks_change_latents(change):
    assert not same(run(partial(MULTI, **change)), run(MULTI))


@pytest.mark.parametrize("change", [{"levels": (4, 4, 4)}, {"num_codebooks": 2}, {"merge": 2}], ids=str)
def test_settings_of_fsq_change_latents(change):
    make = partial(FSQBottleneck, SPEC, levels=(5, 4, 3))
    assert same(run(make), run(make))
    assert not same(run(partial(make, **change)), run(make))


def same(left, right):
    return left[0].shape == right[0].shape and torch.equal(left[0], right[0]) and left[1] == right[1]


@pytest.mark.parametrize("cls", [FSQBottleneck, VQBottleneck, MultiVQBottleneck])
def test_without_the_library_one_line_says_what_to_install(cls, monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    message = rf"{cls.__name__} needs vector-quantize-pytorch: pip install 'uniflow\[vq\]'"
    with pytest.raises(ImportError, match=message):
        cls(SPEC)
