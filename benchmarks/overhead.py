"""What logging, EMA and the other callbacks of `uniflow fit` cost: the trainer with them against the trainer without.

The step of benchmarks/step.py (DINOv2 ViT-S/14, 224 px, batch 4); TensorBoard, all callbacks that the command
line sets, logging every 10 steps (Lightning's default is every 50). A round is one such cycle. Validation, where the
teacher gap is measured, is a row of its own.

    python benchmarks/overhead.py [--rounds 3] [--tiny]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread
from benchmarks.models import Feed, Repeated, Sizes, make_task, make_trainer
from uniflow.callbacks import TeacherGap
from uniflow.cli.app import callback_options

CYCLE = 10  # steps from one logged step to the next
BARE = "the trainer without callbacks and logger"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = arguments(__doc__, rounds=3)
    options = parser.parse_args(argv)
    one_quiet_thread()
    sizes = Sizes(options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        training(sizes, options.rounds, Path(folder))
        validation(sizes, options.rounds, Path(folder))
    return 0


def training(sizes: Sizes, rounds: int, folder: Path) -> None:
    """Whole cycles of steps with everything, and with nothing."""
    full = f"{CYCLE} steps, all callbacks of the command line and TensorBoard"
    feeds = {BARE: _start(sizes, lambda: make_trainer(folder)), full: _start(sizes, lambda: _full(folder))}
    try:
        # They take turns at each step, so that a machine that slows down slows all; a round is a whole cycle of them.
        steps = interleaved({name: feed.step for name, feed in feeds.items()}, rounds=CYCLE * rounds)
    finally:
        for feed in feeds.values():
            feed.close()
    times = {name: own.in_groups(CYCLE) for name, own in steps.items()}
    emit(measurement(full, times[full], times[BARE], against=BARE, target=1.03))


def validation(sizes: Sizes, rounds: int, folder: Path) -> None:
    """Validation of eight batches with the teacher gap, and without."""
    task = make_task(sizes, compiled=False, fused=False)
    data: Any = Repeated({**sizes.batch(), "label": torch.arange(4)}, 8)

    def validate(callbacks: list[Callback]) -> Callable[[], None]:
        return lambda: make_trainer(folder, callbacks, limit_val_batches=8).validate(task, data, verbose=False)

    without = "validation without it"
    times = interleaved({without: validate([]), "with": validate([TeacherGap()])}, rounds=rounds)
    emit(measurement("validation with the teacher gap", times["with"], times[without], against=without))


def _full(folder: Path) -> Trainer:
    """As the command line sets it up, for a step of training."""
    logger = TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
    callbacks = [cls() for cls in callback_options().values()]
    return make_trainer(folder, callbacks, logger=logger, enable_checkpointing=True, log_every_n_steps=CYCLE)


def _start(sizes: Sizes, trainer: Callable[[], Trainer]) -> Feed:
    task = make_task(sizes, compiled=False, fused=False)
    return Feed(lambda feed: trainer().fit(task, feed), sizes.batch())


if __name__ == "__main__":
    sys.exit(main())
