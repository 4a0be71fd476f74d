"""The training step: DINOv2 ViT-S/14, 224 px, batch 4, distillation on, in bf16, in Lightning's own loop.

Against the same step as one would first write it (float32, attention written out, AdamW and cosines not fused, float32
teacher), in time and in peak memory; and against the floor: the teacher's forward pass and both passes of timm's bare
encoder and of the decoder, in the same precision and with the same kernels.

    python benchmarks/step.py [--rounds 5] [--compiled] [--tiny]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread, peak_live_bytes, row
from benchmarks.models import BATCH, Feed, Repeated, Sizes, floor_step, make_task, make_trainer, straightforward_step
from uniflow.distill import cosine_distances

Variant = tuple[bool, bool, bool]
STRAIGHTFORWARD = "straightforward: float32, attention written out, AdamW and cosines not fused"
FLOOR = "floor: teacher forward, bare timm encoder and decoder forward and backward, same precision and kernels"
# Name of a row -> what the step has of: compiled blocks, fused attention, a teacher rounded to bf16.
VARIANTS = {
    "step, bf16, attention written out": (False, False, True),
    "step, bf16, attention written out, teacher stored in float32": (False, False, False),
    "step, bf16, fused attention": (False, True, True),
}
OURS = next(iter(VARIANTS))
COMPILED = {"step, bf16, attention written out, compiled blocks": (True, False, True)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--compiled", action="store_true", help="with compiled blocks, too, which takes minutes")
    options = parser.parse_args(argv)
    one_quiet_thread()
    sizes = Sizes(options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        variants = {**VARIANTS, **(COMPILED if options.compiled else {})}
        time_steps(sizes, variants, options.rounds, Path(folder))
        peak_memory(sizes, variants, Path(folder))
    time_distances(sizes)
    return 0


def time_steps(sizes: Sizes, variants: Mapping[str, Variant], rounds: int, folder: Path) -> None:
    """Each variant against the straightforward step; ours and the compiled one also against their floor."""
    candidates: dict[str, Callable[[], object]] = {STRAIGHTFORWARD: straightforward_step(sizes)}
    feeds, floors = {}, {}
    for name, (compiled, fused, rounded) in variants.items():
        task = make_task(sizes, compiled=compiled, fused=fused, rounded=rounded)
        feeds[name] = Feed(lambda feed, task=task: make_trainer(folder).fit(task, feed), sizes.batch())
        candidates[name] = feeds[name].step
        if name == OURS or compiled:
            floors[name] = f"floor of {name}"
            floor = floor_step(sizes, dtype=torch.bfloat16, compiled=compiled, fused=fused)
            candidates[floors[name]] = floor
    try:
        times = interleaved(candidates, rounds=rounds, warmup=2)
    finally:
        for feed in feeds.values():
            feed.close()
    for name in variants:
        target = 0.45 if name == OURS else None
        emit(measurement(name, times[name], times[STRAIGHTFORWARD], against=STRAIGHTFORWARD, target=target))
    for name, floor_name in floors.items():
        target = 1.10 if name == OURS else None
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


def peak_memory(sizes: Sizes, variants: Mapping[str, Variant], folder: Path) -> None:
    """The peak of live tensor bytes from the building of the networks to the end of the third step."""

    def straightforward() -> None:
        step = straightforward_step(sizes)
        for _ in range(3):
            step()

    baseline = peak_live_bytes(straightforward)
    for name, (compiled, fused, rounded) in variants.items():

        def fit(compiled: bool = compiled, fused: bool = fused, rounded: bool = rounded) -> None:
            task = make_task(sizes, compiled=compiled, fused=fused, rounded=rounded)
            make_trainer(folder, max_steps=3).fit(task, Repeated(sizes.batch(), 3))

        peak = peak_live_bytes(fit)
        emit(
            row(
                name.replace("step", "peak memory of the step"),
                peak / 2**20,
                "MiB of live tensors",
                STRAIGHTFORWARD,
                peak / baseline,
                target=0.80 if name == OURS else None,
                baseline_value=round(baseline / 2**20, 1),
            )
        )


if __name__ == "__main__":
    sys.exit(main())
