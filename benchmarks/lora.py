"""The training step of a ViT-L/14 at 224 px with low-rank adapters against that of full tuning, with EMA.

Time and peak memory of one step in the loop of Lightning, on one CPU thread, and how many parameters are trained.

    python benchmarks/lora.py [--only memory|time] [--rank 16] [--batch 1] [--rounds 3] [--tiny]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import arguments, emit, interleaved, measurement, one_quiet_thread, peak_live_bytes, row
from benchmarks.models import Feed, Repeated, make_trainer
from uniflow.callbacks import EMA
from uniflow.decoders import PatchFlowDecoder
from uniflow.encoders import DINOv2
from uniflow.tasks import TokenizerTask
from uniflow.training import FusedAdamW

FULL = "full tuning: the same step with tune full"
STEPS = 2  # the optimizer's state exists from the second on
TINY = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def make_encoder(tune: dict[str, Any], tiny: bool) -> DINOv2:
    """An encoder of ViT-L/14's shape with random weights."""
    return DINOv2("l14", weights=None, image_size=224, **(TINY if tiny else {}), **tune)


def make_task(tune: dict[str, Any], tiny: bool) -> TokenizerTask:
    """The tokenizer's task on it, with a light flow decoder."""
    torch.manual_seed(0)
    encoder = partial(make_encoder, tune, tiny)
    width = 64 if tiny else 384
    decoder = partial(PatchFlowDecoder, width=width, global_depth=1, num_heads=2, flow_depth=1, prediction="data")
    return TokenizerTask(encoder=encoder, decoder=decoder, optimizer=partial(FusedAdamW, lr=1e-4))


class Runs:
    """The two trainings.

    Args:
        batch: what both train on, step after step.
        rank: of the adapters.
        tiny: whether the networks are tiny.
        folder: where the trainers may write.
    """

    def __init__(self, batch: dict[str, Any], rank: int, tiny: bool, folder: Path) -> None:
        self._batch, self._tiny, self._folder = batch, tiny, folder
        self._ways: dict[str, dict[str, Any]] = {"lora": {"tune": "lora", "lora_rank": rank}, "full": {"tune": "full"}}
        self._what = f"rank {rank}, batch {len(batch['image'])}"

    def fit(self, way: str, feed: Any, **settings: Any) -> None:
        """Train as one of the two."""
        task = make_task(self._ways[way], self._tiny)
        make_trainer(self._folder, [EMA(0.999)], **settings).fit(task, feed)

    def memory(self) -> None:
        """Print the peak from the building of the networks to the end of the second step, and what is trained."""
        trained, peaks = {}, {}
        for way, given in self._ways.items():
            parameters = make_encoder(given, self._tiny).parameters()
            trained[way] = sum(p.numel() for p in parameters if p.requires_grad)
            peaks[way] = peak_live_bytes(partial(self.fit, way, Repeated(self._batch, STEPS), max_steps=STEPS)) / 2**20
        for name, unit, values in (
            ("trained parameters of the encoder with lora", "parameters", trained),
            ("peak memory of the step with lora", "MiB of live tensors", peaks),
        ):
            lora, full = values["lora"], values["full"]
            emit(row(f"{name}, {self._what}", lora, unit, FULL, lora / full, baseline_value=round(full, 1)))

    def time(self, rounds: int) -> None:
        """Print the time of a step."""
        feeds = {way: Feed(partial(self.fit, way), self._batch) for way in self._ways}
        steps: dict[str, Callable[[], Any]] = {way: feed.step for way, feed in feeds.items()}
        try:
            times = interleaved(steps, rounds=rounds)
        finally:
            for feed in feeds.values():
                feed.close()
        emit(measurement(f"step with lora, {self._what}", times["lora"], times["full"], against=FULL))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--only", choices=["memory", "time"], help="one of the two measurements")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--batch", type=int, default=1, help="images a step")
    options = parser.parse_args(argv)
    one_quiet_thread()
    size = 28 if options.tiny else 224
    images = torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs({"image": images}, options.rank, options.tiny, Path(folder))
        if options.only != "time":
            runs.memory()
        if options.only != "memory":
            runs.time(options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
