"""What makes a model faster on a CPU. No weight and no name changes; docs/benchmarks.md has the measurements."""

from __future__ import annotations

import platform
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

# Capabilities (`torch.backends.cpu.get_cpu_capability`) without bfloat16 instructions: there a linear layer of
# 512 x 384 x 1536 runs at 12 GFLOP/s in bfloat16 and 75 in float32 (AMD EPYC, AVX2, one thread, 2026-11-26).
SLOW_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")


def fuse_attention(module: nn.Module, fused: bool = True) -> int:
    """Let timm's attention layers call PyTorch's fused kernel, or write attention out as matrix products.

    The fused kernel needs no memory for the N x N weights and is the faster one in float32 and on GPUs. On CPUs without
    bfloat16 tiles (AMX) it computes bfloat16 no faster than float32: written out, 257 tokens take a third of its time.

    Returns:
        How many layers there are.
    """
    layers = [m for m in module.modules() if isinstance(getattr(m, "fused_attn", None), bool)]
    for layer in layers:
        layer.fused_attn = fused  # type: ignore[assignment]  # a plain attribute of timm's
    return len(layers)


def use_onednn(module: nn.Module) -> int:
    """Compute a model's linear layers in float32 by oneDNN where PyTorch would take MKL, on CPUs and without gradients.

    MKL leaves AMD's 512-bit units unused: oneDNN is 2.2 times as fast there (`onednn_is_faster`). Both compute in
    float32 throughout and differ in the order of sums. Calls with gradients, of another type, under autocast, compiled
    or on another device do not change.

    Returns:
        How many layers there are.

    Raises:
        ValueError: if this PyTorch was built without oneDNN.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        raise ValueError("use_onednn: this PyTorch was built without oneDNN")
    _count_operations()
    layers = [m for m in module.modules() if type(m) is nn.Linear]
    for layer in layers:
        # A bound method, which deepcopy binds to the copy.
        layer.__dict__["forward"] = MethodType(_linear, layer)
    return len(layers)


def has_slow_bfloat16() -> bool:
    """Whether this machine's CPU has no bfloat16 instructions."""
    return torch.backends.cpu.get_cpu_capability() in SLOW_BFLOAT16


def onednn_is_faster() -> bool:
    """Whether `use_onednn` is known to be faster here: on AMD processors with AVX-512, where PyTorch would take MKL.

    MKL uses 256-bit instructions on AMD processors, oneDNN uses the 512-bit ones. Without AVX-512 both use 256 bits and
    are equally fast (docs/benchmarks.md has both measurements); on Intel's processors MKL uses 512 bits, too.
    """
    backends = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return backends and has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


def _count_operations() -> None:
    """Let `FlopCounterMode` count oneDNN's operation, as it counts matrix products."""
    operator = torch.ops.mkldnn._linear_pointwise
    if operator not in flop_registry:
        register_flop_formula(operator)(_linear_flop)


def _linear_flop(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * x.numel() * weight[0]


def _is_amd() -> bool:
    description = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows the vendor
    text = description.read_text(errors="replace") if description.is_file() else platform.processor()
    return "AuthenticAMD" in text


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler takes this operation with constant weights only
        return F.linear(x, self.weight, self.bias)
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.device.type != "cpu"
    if plain or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
        return F.linear(x, self.weight, self.bias)
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
