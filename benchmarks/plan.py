"""What `uniflow plan` says a training step takes on one CPU process, against what it takes: one JSON line each.

The step is that of a short fit by Lightning, with optimizer, EMA and teacher; its memory is what PyTorch's allocator
gave out at most (`torch.profiler` with `profile_memory`), in a process of its own. The ratio is planned / measured.

    python benchmarks/plan.py
    python benchmarks/plan.py --case dinov2_s14 --mixed --checkpointing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/plan.py`

import torch
from lightning.pytorch import Trainer

from benchmarks.measure import emit, peak_live_bytes, row
from uniflow.bottleneck import MLPBottleneck
from uniflow.callbacks import EMA
from uniflow.decoders import PatchFlowDecoder
from uniflow.encoders import DINOv2, SceneViT
from uniflow.layers.cpu import has_slow_bfloat16
from uniflow.plan import FakeTask, memory_of
from uniflow.tasks import TokenizerTask

STEPS = 3  # the optimizer makes its states in the first; the third begins with the gradients of the second
# Name -> encoder, decoder, batch. quickstart: recipes/scenes_paper.yaml with AdamW; the other the paper's decoder.
CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "quickstart": (
        partial(SceneViT, weights=None),
        partial(PatchFlowDecoder, width=128, global_depth=1, num_heads=4, flow_depth=2, prediction="data"),
        (8, 3, 64, 64),
    ),
    "dinov2_s14": (partial(DINOv2, variant="s14", weights=None), PatchFlowDecoder, (4, 3, 224, 224)),
}


def make(case: str, checkpointing: bool = False) -> TokenizerTask:
    """The task of a case, not built yet."""
    encoder, decoder, _ = CASES[case]
    return TokenizerTask(
        encoder=encoder, bottleneck=MLPBottleneck, decoder=decoder, activation_checkpointing=checkpointing
    )


def measured(case: str, mixed: bool, checkpointing: bool) -> int:
    """Peak bytes of a fit of a few steps in this process."""
    images = torch.randint(0, 256, CASES[case][2], dtype=torch.uint8)

    def fit() -> None:
        batches = torch.utils.data.DataLoader([{"image": image} for image in images] * STEPS, batch_size=len(images))
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                accelerator="cpu", max_steps=STEPS, precision="bf16-mixed" if mixed else "32-true",
                callbacks=[EMA(0.99)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, default_root_dir=folder,
            ).fit(make(case, checkpointing), batches)  # fmt: skip

    return peak_live_bytes(fit)


def planned(case: str, mixed: bool, checkpointing: bool) -> int:
    """Peak bytes of the same, without running it."""
    fake = FakeTask(make(case))
    return memory_of(fake, CASES[case][2], mixed=mixed, checkpointing=checkpointing, device="cpu")[0].total


def main(cases: tuple[str, ...] = tuple(CASES), both: bool = True) -> list[dict[str, Any]]:
    """Measure the cases, each in a process of its own, and print a line for each.

    Args:
        cases: names in `CASES`.
        both: also with activation checkpointing and, where this CPU is not slow at it, with bf16-mixed precision; else
            float32 without.

    Returns:
        The printed lines.
    """
    rows = []
    for case in cases:
        for mixed in (False, True) if both and not has_slow_bfloat16() else (False,):
            for checkpointing in (False, True) if both else (False,):
                rows.append(compare(case, mixed, checkpointing))
                emit(rows[-1])
    return rows


def compare(case: str, mixed: bool, checkpointing: bool) -> dict[str, Any]:
    """One measurement."""
    options = ["--case", case, *["--mixed"] * mixed, *["--checkpointing"] * checkpointing]
    command = [sys.executable, __file__, *options, "--measure"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    real, plan = int(run.stdout.splitlines()[-1]), planned(case, mixed, checkpointing)
    return row(
        f"plan: peak of a training step, {case}, {'bf16-mixed' if mixed else 'float32'}"
        f"{', checkpointing' if checkpointing else ''}",
        plan / 2**20, "MiB", "measured peak of live tensors", plan / real,
        command=f"python benchmarks/plan.py {' '.join(options)}", baseline_value=round(real / 2**20, 1),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="one case in one way; default: the larger one in all ways")
    parser.add_argument("--mixed", action="store_true", help="bf16-mixed precision")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing in every block")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.measure:
        print(json.dumps(measured(given.case, given.mixed, given.checkpointing)))
    elif given.case:
        emit(compare(given.case, given.mixed, given.checkpointing))
    else:
        main(("dinov2_s14",))
