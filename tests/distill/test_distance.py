"""The cosine of tokens: its values and gradients are PyTorch's, and it keeps no copies."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from uniflow.distill import cosine_distances, image_cosines
from uniflow.distill.distance import token_cosines


def pair(dtype, shape=(2, 5, 48), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=generator)
    b = a + scale * torch.randn(shape, generator=generator)
    return a.to(dtype).requires_grad_(), b.to(dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_float32_copies(dtype, scale):
    a, b = pair(dtype, scale=scale)
    weights = torch.randn(a.shape[:-1], generator=torch.Generator().manual_seed(1))
    found = token_cosines(a, b)
    expected = F.cosine_similarity(a.float(), b.float(), dim=-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    [own], [theirs] = (torch.autograd.grad((weights * c).sum(), a) for c in (found, expected))
    assert own.dtype == dtype
    # Both round the same float32 numbers once.
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol={torch.float32: 1e-4}.get(dtype, 1e-2))


def test_gradient_in_float64():
    a, b = pair(torch.float64, (2, 3, 6))
    assert torch.autograd.gradcheck(lambda x: token_cosines(x, b), a)


def test_tokens_of_zeros_have_the_cosine_and_gradient_of_pytorch():
    a, b = torch.zeros(2, 4, requires_grad=True), torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    found, expected = token_cosines(a, b), F.cosine_similarity(a, b, dim=-1)
    assert torch.equal(found, expected)
    [own], [theirs] = (torch.autograd.grad(c.sum(), a) for c in (found, expected))
    torch.testing.assert_close(own, theirs)


def test_only_the_arguments_and_numbers_of_tokens_are_kept():
    a, b = pair(torch.bfloat16, (4, 16, 384))
    kept = []
    with saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        cosine_distances([a, a], [b, b]).sum()
    arguments = {x.untyped_storage().data_ptr() for x in (a, b)}
    others = [x for x in kept if x.untyped_storage().data_ptr() not in arguments]
    assert others
    assert max(x.numel() for x in others) <= 4 * 16


def test_no_gradient_reaches_the_teacher_and_images_are_told_apart():
    a, b = pair(torch.float32)
    b.requires_grad_()
    cosine_distances([a], [b]).sum().backward()
    assert a.grad is not None
    assert b.grad is None
    cosines = image_cosines([a, a], [b, 2 * b])
    assert cosines.shape == (2, 2)
    torch.testing.assert_close(1 - cosines.mean(dim=1), cosine_distances([a, a], [b, b]))


def test_it_compiles_whole():
    a, b = pair(torch.bfloat16)
    compiled = torch.compile(token_cosines, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), token_cosines(a, b))
