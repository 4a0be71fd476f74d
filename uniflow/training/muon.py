"""timm's Muon, at a usable speed on CPUs without bfloat16 instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import timm.optim
import torch
from timm.optim import muon as timm_muon

from uniflow.layers.cpu import has_slow_bfloat16

ORTHOGONALIZE = "zeropower_via_newtonschulz"  # the function of timm that takes the time


class Muon(timm.optim.Muon):
    """`timm.optim.Muon` (https://kellerjordan.github.io/posts/muon), which it equals wherever bfloat16 is fast.

    timm orthogonalises each update by Newton-Schulz iterations in bfloat16. Where a parameter is on a CPU without
    bfloat16 instructions this class computes them in float32: about ten times faster there, and more exact.

    Args:
        params: parameters or parameter groups.
        lr: peak learning rate.
        **options: the other arguments of `timm.optim.Muon`.
    """

    def __init__(self, params: Any, lr: float = 0.02, **options: Any) -> None:
        super().__init__(params, lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of training, as `torch.optim.Optimizer.step`."""
        on_cpu = any(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        if not (on_cpu and has_slow_bfloat16()):
            return super().step(closure)
        with _orthogonalize_in(torch.float32):
            return super().step(closure)


@contextmanager
def _orthogonalize_in(dtype: torch.dtype) -> Iterator[None]:
    """timm's Newton-Schulz iterations in `dtype` while this is open; as they are if timm's function takes none."""
    original = getattr(timm_muon, ORTHOGONALIZE, None)
    if original is None or "dtype" not in signature(original).parameters:
        yield
        return
    setattr(timm_muon, ORTHOGONALIZE, partial(original, dtype=dtype))
    try:
        yield
    finally:
        setattr(timm_muon, ORTHOGONALIZE, original)
