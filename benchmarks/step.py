"""The training step: DINOv2 ViT-S/14, 224 px, batch 4, distillation on, in Lightning's own loop.

Against the same step as one would first write it (float32, attention written out, AdamW and cosines not fused, float32
teacher), in time and in peak memory; and against the floor: the teacher's forward pass and both passes of timm's bare
encoder and of the decoder, in the same precision and with the same kernels.

    python benchmarks/step.py [--rounds 5] [--compiled] [--precision 32-true] [--tiny]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread, peak_live_bytes, row
from benchmarks.models import (
    BATCH,
    PRECISION,
    Feed,
    Repeated,
    Sizes,
    floor_step,
    make_task,
    make_trainer,
    straightforward_step,
)
from uniflow.distill import cosine_distances
from uniflow.layers.blocks import Checkpointing
from uniflow.tasks import TokenizerTask

STRAIGHTFORWARD = "straightforward: float32, attention written out, AdamW and cosines not fused"
FLOOR = "floor: teacher forward, bare timm encoder and decoder forward and backward, same precision and kernels"


class Variant(NamedTuple):
    """What a step has: compiled blocks, fused attention, a teacher rounded to bf16, activation checkpointing, and the
    teacher's states from a cache, which has those of all crops after the first step."""

    compiled: bool = False
    fused: bool = False
    rounded: bool = True
    checkpointing: Checkpointing = False
    cached: bool = False

    def task(self, sizes: Sizes, folder: Path) -> TokenizerTask:
        """The task to train; `folder` for what it keeps."""
        options = self._asdict()
        cache = folder / "states" if options.pop("cached") else None
        return make_task(sizes, **options, state_cache=cache)


# Trainer's precision -> name of a row -> what the step has. The first is what a fit does.
WRITTEN, FUSED = "step, bf16, attention written out", "step, float32, fused attention"
VARIANTS = {
    "bf16-mixed": {
        WRITTEN: Variant(),
        f"{WRITTEN}, teacher stored in float32": Variant(rounded=False),
        "step, bf16, fused attention": Variant(fused=True),
        f"{WRITTEN}, selective checkpointing": Variant(checkpointing="selective"),
        f"{WRITTEN}, checkpointing": Variant(checkpointing=True),
        f"{WRITTEN}, cached teacher": Variant(cached=True),
    },
    "32-true": {
        FUSED: Variant(fused=True, rounded=False),
        f"{FUSED}, selective checkpointing": Variant(fused=True, rounded=False, checkpointing="selective"),
        f"{FUSED}, checkpointing": Variant(fused=True, rounded=False, checkpointing=True),
        f"{FUSED}, cached teacher": Variant(fused=True, rounded=False, cached=True),
    },
}
DTYPES = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}
LARGEST_TIME, LARGEST_OVER_FLOOR, LARGEST_MEMORY = 0.45, 1.10, 0.80  # ratios that are good, in bf16


@dataclass
class Steps:
    """Trainings of one size and precision; `folder` for what they keep."""

    sizes: Sizes
    precision: str
    folder: Path

    def fit(self, variant: Variant, batches: Any, **settings: Any) -> None:
        """Train on the batches."""
        trainer = make_trainer(self.folder, precision=self.precision, **settings)
        trainer.fit(variant.task(self.sizes, self.folder), batches)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--compiled", action="store_true", help="with compiled blocks, too, which takes minutes")
    parser.add_argument(
        "--precision",
        choices=list(VARIANTS),
        default=PRECISION,
        help="of the trainer; 32-true, which has no targets, on CPUs without bfloat16 instructions",
    )
    options = parser.parse_args(argv)
    one_quiet_thread()
    sizes, variants = Sizes(options.tiny), dict(VARIANTS[options.precision])
    if options.compiled:
        name, ours = next(iter(variants.items()))
        variants[f"{name}, compiled blocks"] = ours._replace(compiled=True)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(sizes, options.precision, Path(folder))
        time_steps(steps, variants, options.rounds)
        peak_memory(steps, variants)
    time_distances(sizes)
    return 0


def time_steps(steps: Steps, variants: Mapping[str, Variant], rounds: int) -> None:
    """Each variant against the straightforward step; ours and the compiled one also against their floor."""
    sizes, dtype = steps.sizes, DTYPES[steps.precision]
    candidates: dict[str, Callable[[], object]] = {STRAIGHTFORWARD: straightforward_step(sizes)}
    feeds, floors = {}, {}
    ours = next(iter(variants))
    for name, variant in variants.items():
        feeds[name] = Feed(partial(steps.fit, variant), sizes.batch())
        candidates[name] = feeds[name].step
        if name == ours or variant.compiled:
            floors[name] = f"floor of {name}"
            candidates[floors[name]] = floor_step(sizes, dtype=dtype, compiled=variant.compiled, fused=variant.fused)
    try:
        times = interleaved(candidates, rounds=rounds, warmup=2)
    finally:
        for feed in feeds.values():
            feed.close()
    for name in variants:
        target = LARGEST_TIME if name == WRITTEN else None
        emit(measurement(name, times[name], times[STRAIGHTFORWARD], against=STRAIGHTFORWARD, target=target))
        if variants[name].checkpointing or variants[name].cached:
            emit(measurement(f"{name}, over the step without", times[name], times[ours], against=ours))
    for name, floor_name in floors.items():
        target = LARGEST_OVER_FLOOR if name == WRITTEN else None
        emit(measurement(f"{name}, over the floor", times[name], times[floor_name], against=FLOOR, target=target))


def time_distances(sizes: Sizes) -> None:
    """Both passes of the layers' distances in float32 against PyTorch's cosine similarity."""
    shape = (BATCH, (sizes.size // 14) ** 2, 384)
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(shape, generator=generator) for _ in range(12)] for _ in range(2))
    for hidden in student:
        hidden.requires_grad_()

    def plain(own: list[torch.Tensor], other: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([1 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(own, other, strict=True)])

    against = "torch.nn.functional.cosine_similarity"
    calls = {"ours": cosine_distances, against: plain}
    times = interleaved({n: lambda f=f: f(student, teacher).sum().backward() for n, f in calls.items()}, rounds=15)
    emit(measurement("distances of 12 layers, forward and backward", times["ours"], times[against], against=against))


def peak_memory(steps: Steps, variants: Mapping[str, Variant]) -> None:
    """The peak of live tensor bytes from the building of the networks to the end of the third step."""

    def straightforward() -> None:
        step = straightforward_step(steps.sizes)
        for _ in range(3):
            step()

    baseline = peak_live_bytes(straightforward)
    for name, variant in variants.items():
        batches = Repeated(steps.sizes.batch(), 3)
        peak = peak_live_bytes(partial(steps.fit, variant, batches, max_steps=3))
        emit(
            row(
                name.replace("step", "peak memory of the step"),
                peak / 2**20,
                "MiB of live tensors",
                STRAIGHTFORWARD,
                peak / baseline,
                target=LARGEST_MEMORY if name == WRITTEN else None,
                baseline_value=round(baseline / 2**20, 1),
            )
        )


if __name__ == "__main__":
    sys.exit(main())
