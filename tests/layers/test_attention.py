"""Attention over a grid: positions are relative, masks hide, and cross-attention starts at zero."""

import warnings

import pytest
import torch

from uniflow.layers.attention import (
    CausalAttention,
    CrossAttention,
    GatedMLP,
    GridAttention,
    KeyValues,
    attend,
    rotary_angles,
    rotate,
)


def test_rotation_keeps_lengths_and_depends_on_differences_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float32)
    angles = rotary_angles((6, 7), 8, torch.device("cpu")).unflatten(0, (6, 7))
    turned = rotate(q, angles)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm().expand(6, 7))
    first = (rotate(q, angles[1, 2]) * rotate(k, angles[3, 5])).sum()
    moved = (rotate(q, angles[2, 3]) * rotate(k, angles[4, 6])).sum()
    other = (rotate(q, angles[2, 3]) * rotate(k, angles[5, 6])).sum()
    torch.testing.assert_close(first, moved)
    assert (first - other).abs() > 1e-3


def test_rows_and_columns_are_told_apart():
    angles = rotary_angles((3, 4), 8, torch.device("cpu")).unflatten(0, (3, 4))
    assert torch.equal(angles[1, :, :2], angles[1, :1, :2].expand(4, 2))
    assert torch.equal(angles[:, 1, 2:], angles[:1, 1, 2:].expand(3, 2))
    assert not torch.equal(angles[0, 1], angles[1, 0])
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_angles((2, 2), 6, torch.device("cpu"))


def test_attention_sees_positions():
    torch.manual_seed(0)
    attention, x = GridAttention(16, 2), torch.randn(1, 6, 16)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    angles = rotary_angles((2, 3), 8, x.device)
    assert attention(x, angles).shape == x.shape
    assert not torch.allclose(attention(x, angles)[:, 2:], attention(swapped, angles)[:, 2:], atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_attention_in_bfloat16_is_near_that_in_float32(grad):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True
    exact = attend(q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=2e-2, rtol=2e-2)
    if grad:
        gradients = (torch.autograd.grad(output.float().square().sum(), (q, k, v)) for output in (exact, rounded))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(other, one, atol=0.1, rtol=0.05)


def test_no_warning_of_mixed_types_under_autocast():
    attention, cross = GridAttention(16, 2), CrossAttention(16, 6, 2)
    x = torch.randn(1, 6, 16)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        attention(x, rotary_angles((2, 3), 8, x.device))
        cross(x, torch.randn(1, 4, 6), None)


def test_cross_attention_starts_at_zero_and_obeys_its_mask():
    torch.manual_seed(0)
    cross, x, context = CrossAttention(16, 6, 2), torch.randn(2, 4, 16), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert cross(x, context, mask).abs().max() == 0
    torch.nn.init.normal_(cross.proj.weight)
    hidden = context.clone()
    hidden[~mask] = 100.0
    torch.testing.assert_close(cross(x, context, mask), cross(x, hidden, mask))
    assert not torch.allclose(cross(x, context, None), cross(x, context, mask))


def test_a_gated_mlp_is_as_large_as_a_plain_one():
    plain = 2 * 4 * 384 * 384
    gated = sum(p.numel() for name, p in GatedMLP(384, 4.0).named_parameters() if name.endswith("weight"))
    assert gated == pytest.approx(plain, rel=0.01)


def test_the_convolution_of_an_mlp_starts_as_nothing_and_reaches_the_neighbours():
    torch.manual_seed(0)
    plain, x = GatedMLP(8, 2.0), torch.randn(2, 6 * 5, 8)
    mlp = GatedMLP(8, 2.0, kernel=3)
    mlp.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(mlp(x, (6, 5)), plain(x))
    torch.nn.init.ones_(mlp.conv.weight)
    changed = x.clone()
    changed[:, 2 * 5 + 3] += 1
    moved = (mlp(changed, (6, 5)) - mlp(x, (6, 5))).abs().amax(dim=(0, 2)).unflatten(0, (6, 5)) > 1e-6
    assert moved.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4)]


@pytest.mark.parametrize("grad", [True, False])
def test_a_causal_token_sees_those_before_it_and_a_cache_gives_the_same(grad):
    torch.manual_seed(0)
    attention, x = CausalAttention(16, 2), torch.randn(2, 6, 16)
    angles = rotary_angles((2, 3), 8, x.device)
    with torch.set_grad_enabled(grad):
        whole = attention(x, angles)
        changed = x.clone()
        changed[:, 3] += 1
        moved = (attention(changed, angles) - whole).abs().amax(dim=(0, 2)) > 1e-5
        cache = KeyValues()
        steps = [attention(x[:, n : n + 1], angles[n : n + 1], cache) for n in range(6)]
    assert moved.tolist() == [False] * 3 + [True] * 3
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    plain = GridAttention(16, 2)
    plain.load_state_dict(attention.state_dict())
    torch.testing.assert_close(plain(x, angles)[:, -1], whole[:, -1])  # the last one sees all
