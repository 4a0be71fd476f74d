"""Muon: timm's numbers in bfloat16 where that is fast, float32 where it is not."""

from functools import wraps

import pytest
import timm.optim
import torch
from timm.optim import muon as timm_muon
from torch import Tensor

from uniflow.training import Muon
from uniflow.training import muon as own


def weights_after_steps(optimizer: type[torch.optim.Optimizer], steps: int = 3, **options: object) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(24, 16, generator=generator))
    optimize = optimizer([weight], lr=0.1, **options)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimize.step()
    return weight.detach()


def test_it_is_timms_where_bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "has_slow_bfloat16", lambda: False)
    torch.testing.assert_close(weights_after_steps(Muon), weights_after_steps(timm.optim.Muon), rtol=0, atol=0)


def test_it_computes_in_float32_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "has_slow_bfloat16", lambda: True)
    timms, types = weights_after_steps(timm.optim.Muon), []
    original = timm_muon.zeropower_via_newtonschulz

    @wraps(original)
    def recorded(*arguments: object, **options: object) -> Tensor:
        types.append(result := original(*arguments, **options))
        return result

    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", recorded)
    exact = weights_after_steps(Muon)
    assert [update.dtype for update in types] == [torch.float32] * 3
    assert timm_muon.zeropower_via_newtonschulz is recorded  # put back
    assert 0 < (exact - timms).abs().max() < 0.05  # bfloat16 has three digits; each step moves a value by up to 0.1


def test_its_options_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "has_slow_bfloat16", lambda: True)
    assert not torch.equal(weights_after_steps(Muon), weights_after_steps(Muon, momentum=0.5))
    assert not torch.equal(weights_after_steps(Muon), weights_after_steps(Muon, weight_decay=0.1))
