"""Which precision is slow on which processor."""

from __future__ import annotations

import sys

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator

# 32-bit floating point; what to use on a CPU without bfloat16 instructions.
FAST_ON_CPU = "32-true"
# Capabilities (`torch.backends.cpu.get_cpu_capability`) without bfloat16 instructions: there a linear layer of
# 512 x 384 x 1536 runs at 12 GFLOP/s in bfloat16 and 75 in float32 (AMD EPYC, AVX2, one thread, 2026-11-26).
SLOW_BFLOAT16 = ("DEFAULT", "NO AVX", "AVX2")


def slow_on_this_cpu(precision: str | int | None) -> bool:
    """Whether this machine's CPU computes in the `Trainer`'s `precision` much more slowly than in float32."""
    return "bf16" in str(precision) and torch.backends.cpu.get_cpu_capability() in SLOW_BFLOAT16


def warn_if_slow(trainer: Trainer) -> None:
    """Say in one line on stderr that training on this CPU takes several times as long as needed, if it does."""
    if (
        trainer.is_global_zero
        and isinstance(trainer.accelerator, CPUAccelerator)
        and slow_on_this_cpu(trainer.precision)
    ):
        print(
            f"uniflow: warning: this CPU has no bfloat16 instructions, so {trainer.precision} is about 6 times slower "
            f"than float32: use --trainer.precision {FAST_ON_CPU}",
            file=sys.stderr,
        )
