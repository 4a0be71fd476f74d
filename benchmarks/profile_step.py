"""Profile of a training step (see benchmarks/step.py): a trace for chrome://tracing, and a table of the top operators.

python benchmarks/profile_step.py [--out runs/profile] [--precision bf16-mixed] [--compiled] [--fused]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import Repeated, Sizes, make_task, make_trainer


class Profile(Callback):
    """Profiles one step, after two to warm up."""

    STEP = 2

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.STEP:
            self.profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.STEP:
            self.profiler.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Profile, write `trace.json` and `top.txt` into the folder, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/profile"), help="folder to write into")
    parser.add_argument("--precision", default="bf16-mixed", help="of the trainer")
    parser.add_argument("--compiled", action="store_true", help="compile the blocks")
    parser.add_argument("--fused", action="store_true", help="PyTorch's fused attention in place of matrix products")
    parser.add_argument("--rows", type=int, default=25, help="of the table")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sizes, watch = Sizes(options.tiny), Profile()
    rounded = options.precision == "bf16-mixed"
    task = make_task(sizes, compiled=options.compiled, fused=options.fused, rounded=rounded)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), [watch], precision=options.precision)
        trainer.fit(task, Repeated(sizes.batch(), Profile.STEP + 1))  # type: ignore[arg-type]  # any iterable will do
    table = watch.profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=options.rows, max_name_column_width=44
    )
    options.out.mkdir(parents=True, exist_ok=True)
    watch.profiler.export_chrome_trace(str(options.out / "trace.json"))
    (options.out / "top.txt").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
