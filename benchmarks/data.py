"""Images per second of reading, decoding and cropping, one thread: one JSON line a measurement.

The pictures are photographs of scikit-image and scikit-learn as JPEGs of 500 x 375 pixels, quality 90. Ratios are of
images per second, larger is better, against a baseline that runs in turn with the candidate. "seconds" says whether
they are of the processor's or, where a worker process takes part, of the clock.

    python benchmarks/data.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import Times, emit, interleaved, row, significant
from uniflow.data import ImageFolder, WebDataset
from uniflow.data.images import reading
from uniflow.data.images.buckets import read_sizes
from uniflow.data.images.reading import read_image
from uniflow.data.images.shards import ShardReader
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.data.sampler import sample_generator
from uniflow.data.skipped import SkipLog
from uniflow.tools.pack import pack
from uniflow.tools.photos import export_photos

WIDTH, HEIGHT, SIZE, CROP = 500, 375, 256, 0.875
COPIES = 2  # of each of the 64 pictures in the folder and in the shards
SHORT = 16  # pictures a round of a measurement that has no loader: short rounds, so that what disturbs one disturbs all
PIL_RGB = "PIL: np.array(Image.open(file).convert('RGB'))"
BARE = "simplejpeg.decode_jpeg"
FLOOR = "floor: simplejpeg.decode_jpeg, then the same crop of the pixels"  # no file, no header, no seed, no batch
BICUBIC = v2.InterpolationMode.BICUBIC
Call = Callable[[bytes, int], Any]


def main(argv: list[str] | None = None) -> int:
    """Measure everything and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="epochs of each loader; shorter measurements have four times as many rounds",
    )
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_jpegs(folder)
        for measure in (crops, decoders, folders, shards, headers):
            for line in measure(folder, files, rounds):
                emit(line)
    return 0


def write_jpegs(folder: Path) -> list[bytes]:
    """Four random 4:3 cuts of each photograph, as train/*.jpg with copies, and a few as val and test."""
    photos = export_photos(folder / "photos")
    generator, files = np.random.default_rng(0), []
    for path in photos:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        for _ in range(4):
            width = min(photo.width, photo.height * WIDTH / HEIGHT) * generator.uniform(0.6, 1)
            height = width * HEIGHT / WIDTH
            x, y = generator.uniform(0, photo.width - width), generator.uniform(0, photo.height - height)
            file = io.BytesIO()
            cut = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (x, y, x + width, y + height))
            cut.save(file, "JPEG", quality=90)
            files.append(file.getvalue())
    for split, count in (("train", COPIES * len(files)), ("val", 4), ("test", 4)):
        (folder / "images" / split).mkdir(parents=True)
        for number, data in enumerate(itertools.islice(itertools.cycle(files), count)):
            (folder / "images" / split / f"{number:04d}.jpg").write_bytes(data)
    return files


def crops(folder: Path, files: list[bytes], rounds: int) -> Iterator[dict[str, Any]]:
    """JPEG bytes -> crop of 256 pixels, against PIL and torchvision's transforms."""
    train_crop, eval_crop = RandomResizedCrop(SIZE), CenterCrop(SIZE, CROP)
    yield from crop(
        "random resized crop", lambda data, i: train_crop(read_image(data), sample_generator(0, i)), files, rounds,
        lambda t: [t.RandomResizedCrop(SIZE, interpolation=BICUBIC, antialias=True), t.RandomHorizontalFlip()],
    )  # fmt: skip
    yield from crop(
        "centre crop", lambda data, i: eval_crop(read_image(data)), files, rounds,
        lambda t: [t.Resize(round(SIZE / CROP), interpolation=BICUBIC, antialias=True), t.CenterCrop(SIZE)],
    )  # fmt: skip


def crop(
    name: str, ours: Call, files: list[bytes], rounds: int, theirs: Callable[[Any], list[Any]]
) -> Iterator[dict[str, Any]]:
    """One kind of crop, `theirs` made from the classes of torchvision's first or second transforms."""
    baselines = {
        "PIL, torchvision.transforms, ToTensor": v1.Compose([*theirs(v1), v1.ToTensor()]),
        "PIL, torchvision.transforms.v2, ToImage, ToDtype": v2.Compose(
            [*theirs(v2), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        ),
        "PIL, torchvision.transforms.v2, PILToTensor (uint8)": v2.Compose([*theirs(v2), v2.PILToTensor()]),
    }
    candidates = {label: over(files, lambda data, i, t=t: t(open_rgb(data))) for label, t in baselines.items()}
    candidates |= {"ours": over(files, ours), "by PIL": without_simplejpeg(over(files, ours))}
    times = interleaved(candidates, rounds=4 * rounds)
    for label in baselines:
        yield speed(name, times["ours"], times[label], label, SHORT, target=1.8)
        yield speed(f"{name}, without simplejpeg", times["by PIL"], times[label], label, SHORT)


def decoders(folder: Path, files: list[bytes], rounds: int) -> Iterator[dict[str, Any]]:
    """Decoding alone."""
    calls = {"read_image": over(files, lambda data, i: read_image(data)), PIL_RGB: over(files, decode_by_pil)}
    calls["read_image, without simplejpeg"] = without_simplejpeg(over(files, lambda data, i: read_image(data)))
    times = interleaved(calls, rounds=4 * rounds)
    for name in ("read_image", "read_image, without simplejpeg"):
        yield speed(name, times[name], times[PIL_RGB], PIL_RGB, SHORT)


def folders(folder: Path, files: list[bytes], rounds: int) -> Iterator[dict[str, Any]]:
    """All of `ImageFolder`'s training loader, from the files to the batches, against decoding alone."""
    count, root = COPIES * len(files), str(folder / "images")
    calls: dict[str, Callable[[], Any]] = {
        BARE: over(files, decode_bare, count),
        PIL_RGB: over(files, decode_by_pil, count),
        FLOOR: over(files, decode_and_crop(RandomResizedCrop(SIZE)), count),
    }
    names = ("ImageFolder, no worker", "ImageFolder, no worker, buckets", "ImageFolder, 1 worker")
    for name in names:
        buckets: list[Any] | None = [224, 256, 288] if "buckets" in name else None
        data = ImageFolder(root, SIZE, buckets=buckets, batch_size=32, num_workers=int("1" in name))
        calls[name] = drain(data.train_dataloader())
    times = interleaved(calls, rounds=rounds)
    for name in names:
        for label in (BARE, PIL_RGB):
            yield speed(name, times[name], times[label], label, count, target=0.55, wall="1" in name)
        yield speed(name, times[name], times[FLOOR], FLOOR, count, wall="1" in name)


def shards(folder: Path, files: list[bytes], rounds: int) -> Iterator[dict[str, Any]]:
    """The samples of shards, undecoded against Python's tarfile, and all of `WebDataset`'s loader against decoding."""
    with contextlib.redirect_stdout(io.StringIO()):
        pack(folder / "images", folder / "shards", shard_size=64)
    paths = [str(path) for path in sorted((folder / "shards").glob("train-*.tar"))]
    reader, count = ShardReader("train", None, SkipLog(None)), COPIES * len(files)
    sources = [f"{folder}/shards/{split}-*.tar" for split in ("train", "val", "test")]
    data = WebDataset(*sources, size=SIZE, batch_size=32, num_workers=0, shuffle_buffer=100)
    calls: dict[str, Callable[[], Any]] = {
        "raw": lambda: [sum(1 for _ in reader.raw(path)) for path in paths],
        "tarfile": lambda: [read_tar(path) for path in paths],
        "loader": drain(data.train_dataloader()),
        BARE: over(files, decode_bare, count),
        PIL_RGB: over(files, decode_by_pil, count),
    }
    times = interleaved(calls, rounds=rounds)
    yield speed("shards, undecoded samples", times["raw"], times["tarfile"], "tarfile: every member read", count)
    for label in (BARE, PIL_RGB):
        yield speed("WebDataset, no worker", times["loader"], times[label], label, count, target=0.55)


def headers(folder: Path, files: list[bytes], rounds: int) -> Iterator[dict[str, Any]]:
    """What `bucket_by: aspect` reads before training."""
    root = folder / "images" / "train"
    names = sorted(path.name for path in root.iterdir())
    calls = {"sizes": lambda: read_sizes(root, names), BARE: over(files, decode_bare, len(names))}
    times = interleaved(calls, rounds=rounds)
    yield speed("sizes of files, from their headers", times["sizes"], times[BARE], BARE, len(names))


def open_rgb(data: bytes) -> Image.Image:
    """The straightforward way."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def decode_by_pil(data: bytes, number: int) -> None:
    np.array(open_rgb(data))


def decode_bare(data: bytes, number: int) -> None:
    reading.simplejpeg.decode_jpeg(data)


def read_tar(path: str) -> None:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            file.read()


def decode_and_crop(train_crop: RandomResizedCrop) -> Call:
    """What no reader can leave out: the pixels, and a crop of them by torch's antialiased resize."""
    generator = torch.Generator()

    def call(data: bytes, number: int) -> None:
        pixels = torch.from_numpy(reading.simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        train_crop(pixels, generator)

    return call


def over(files: list[bytes], call: Call, pictures: int = SHORT) -> Callable[[], None]:
    """`call` on the next so many files, with a running number."""
    numbers = itertools.count()

    def run() -> None:
        for number in itertools.islice(numbers, pictures):
            call(files[number % len(files)], number)

    return run


def without_simplejpeg(call: Callable[[], None]) -> Callable[[], None]:
    """`call` as it runs where the extra `fast` is not installed."""

    def run() -> None:
        fast, reading.FAST_JPEG = reading.FAST_JPEG, False
        call()
        reading.FAST_JPEG = fast

    return run


def drain(loader: Iterable[Any]) -> Callable[[], None]:
    """One epoch of a loader."""

    def run() -> None:
        for _ in loader:
            pass

    return run


def speed(
    name: str, times: Times, baseline: Times, against: str, images: int, target: float | None = None, wall: bool = False
) -> dict[str, Any]:
    """The row of a candidate's images per second over the baseline's.

    Args:
        name: what was measured.
        times: of the candidate.
        baseline: of the baseline, the same rounds.
        against: what the baseline is.
        images: how many of them a round takes.
        target: smallest ratio that is good; None if there is none.
        wall: by the clock, not by the processor's time.
    """
    own, other = (times.wall, baseline.wall) if wall else (times.cpu, baseline.cpu)
    ratios = [b / a for a, b in zip(own, other, strict=True)]
    ratio = median(ratios)
    line = row(name, images / median(own), "images/s", against, ratio, target=target)
    return {
        **line,
        "met": None if target is None else ratio >= target,
        "baseline_value": significant(images / median(other)),
        "spread": [significant(min(ratios)), significant(max(ratios))],
        "rounds": len(ratios),
        "seconds": "clock" if wall else "processor",
    }


if __name__ == "__main__":
    raise SystemExit(main())
