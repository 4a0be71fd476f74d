"""Seconds until the first batch of a folder of very many files and of very many shards: one JSON line a measurement.

Files and shards are made for it, and removed without `--folder`. Candidate and baseline run in turn, with what they
read in the system's memory: a first look at a disk takes longer, for both. Times are of the processor, "wall" and
"wall_ratio" of the clock. No worker processes.

    python benchmarks/first_batch.py [--files 1000000] [--shards 10000] [--rounds 3] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import emit, interleaved, measurement, one_quiet_thread, significant
from uniflow.data import ImageDataModule, ImageFolder, WebDataset
from uniflow.data.images.listing_cache import SETTLED

PER_FOLDER, PER_SHARD, SIZE = 1000, 4, 32
READ, COUNTED = "the folder read each time, cache_listing false", "the shards counted each time"


def main(argv: list[str] | None = None) -> int:
    """Measure and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--files", type=int, default=1_000_000, help="files in the folder")
    parser.add_argument("--shards", type=int, default=10_000, help="training shards")
    parser.add_argument("--folder", type=Path, help="files are made there, unless an earlier call did, and stay there")
    options = parser.parse_args(argv)
    one_quiet_thread()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        root = options.folder or Path(name)
        for measure, count in ((folders, options.files), (shards, options.shards)):
            for line in measure(root, count, options.rounds):
                emit(line)
    return 0


def folders(root: Path, files: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A folder in subfolders of a thousand, with its listing in the cache against without."""
    if not (root / "files").is_dir():
        write_files(root / "files", files)

    def data(cached: bool) -> ImageDataModule:
        return ImageFolder(str(root / "files"), SIZE, cache_listing=cached, batch_size=64, num_workers=0)

    first_batch(lambda: data(True))()
    calls = {"cached": first_batch(lambda: data(True)), READ: first_batch(lambda: data(False))}
    yield compared(f"first batch of {files:,} files", calls, rounds)


def shards(root: Path, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Shards with an index, and without one with their counts in the cache, against counting them."""
    if not (root / "shards").is_dir():
        write_shards(root / "shards", count)
    index = {path.name: PER_SHARD for path in (root / "shards").glob("*.tar")}
    splits = [f"{root}/shards/{split}-*.tar" for split in ("train", "val", "test")]

    def data() -> ImageDataModule:
        return WebDataset(*splits, size=SIZE, batch_size=64, num_workers=0)

    def uncached() -> ImageDataModule:
        for path in Path(os.environ["XDG_CACHE_HOME"], "uniflow", "shards").glob("*"):
            path.unlink()
        return data()

    def indexed() -> ImageDataModule:
        (root / "shards" / "index.json").write_text(json.dumps({"shards": index}))
        return data()

    def bare(make: Callable[[], ImageDataModule]) -> Callable[[], ImageDataModule]:
        def run() -> ImageDataModule:
            (root / "shards" / "index.json").unlink(missing_ok=True)
            return make()

        return run

    counted, kept = first_batch(bare(uncached)), first_batch(bare(data))
    counted()
    yield compared(f"first batch of {count:,} shards, counts kept", {"cached": kept, COUNTED: counted}, rounds)
    yield compared(
        f"first batch of {count:,} shards, index.json", {"cached": first_batch(indexed), COUNTED: counted}, rounds
    )


def write_files(root: Path, count: int) -> None:
    """Small pictures in subfolders of a thousand."""
    pictures = jpegs()
    for number in range(count):
        path = root / f"{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0:
            path.mkdir(parents=True)
        (path / f"{number:08d}.jpg").write_bytes(pictures[number % len(pictures)])
    time.sleep(1.1 * SETTLED / 1e9)  # what was changed just now is not kept


def write_shards(root: Path, count: int) -> None:
    """Shards of a few small pictures."""
    pictures = jpegs()
    root.mkdir(parents=True)
    for split, number in (("train", count), ("val", 2), ("test", 2)):
        for shard in range(number):
            with tarfile.open(root / f"{split}-{shard:06d}.tar", "w") as tar:
                for sample in range(PER_SHARD):
                    member = tarfile.TarInfo(f"{shard:06d}-{sample}.jpg")
                    member.size = len(pictures[sample])
                    tar.addfile(member, io.BytesIO(pictures[sample]))
    time.sleep(1.1 * SETTLED / 1e9)


def jpegs() -> list[bytes]:
    """Twenty small pictures."""
    generator, files = np.random.default_rng(0), []
    for _ in range(20):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(file, "JPEG", quality=50)
        files.append(file.getvalue())
    return files


def first_batch(make: Callable[[], ImageDataModule]) -> Callable[[], None]:
    """From a new data module to its first batch of training."""

    def run() -> None:
        data = make()
        data.setup("fit")
        next(iter(data.train_dataloader()))

    return run


def compared(name: str, calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, Any]:
    """The row of the first of two calls against the second."""
    times = interleaved(calls, rounds=rounds, warmup=0)
    own, other = times.values()
    wall = [significant(median(seconds.wall)) for seconds in (own, other)]
    return measurement(name, own, other, against=list(calls)[1], wall=wall)


if __name__ == "__main__":
    raise SystemExit(main())
