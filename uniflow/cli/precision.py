"""Which precision is slow on which processor."""

from __future__ import annotations

import sys

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator

from uniflow.layers.cpu import has_slow_bfloat16

# 32-bit floating point; what to use on a CPU without bfloat16 instructions.
FAST_ON_CPU = "32-true"


def slow_on_this_cpu(precision: str | int | None) -> bool:
    """Whether this machine's CPU computes in the `Trainer`'s `precision` much more slowly than in float32."""
    return "bf16" in str(precision) and has_slow_bfloat16()


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
