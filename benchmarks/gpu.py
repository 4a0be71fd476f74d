"""Speed on one GPU: training steps, FSDP2, a float8 teacher, encoding and decoding, reading, and a generator.

Random weights. Each figure is a line of JSON. Training goes through `uniflow fit` (benchmarks/gpu_fit.py) in
bf16-mixed, the teacher's operations counted as useful; encoding and decoding are compiled whole, on a GPU as CUDA
graphs. A part that cannot run here, such as float8 on an older GPU, is left out, and why is said.

    python benchmarks/gpu.py [--parts train fsdp2 float8 inference difference reading generator]
    python benchmarks/gpu.py --device cpu --tiny     # the same path at tiny size
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_fit import ENCODERS
from benchmarks.measure import emit, row
from benchmarks.reconstruction import RELEASED, TINY, shake
from uniflow import Tokenizer
from uniflow.conditions import LabelCondition
from uniflow.data import ImageFolder
from uniflow.generators import DiT, Generator
from uniflow.metrics import psnr
from uniflow.tokenizer.official import FIXED, official_parts
from uniflow.training import FusedAdamW

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("train", "fsdp2", "float8", "inference", "difference", "reading", "generator")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS, help="DINOv2 of training steps")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448], help="of training steps, in pixels")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few steps, to try the script")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: no CUDA device; try --device cpu --tiny")
    if options.tiny:
        options.sizes = [28]
    torch.set_float32_matmul_precision("high")
    for part in options.parts:
        globals()[part](options)
    return 0


def train(options: argparse.Namespace) -> None:
    """Training steps: images/s, share of the peak rate, and peak memory against what `uniflow plan` says."""
    for encoder in options.encoders:
        for size in options.sizes:
            name = f"training step, DINOv2-{encoder}, {size} px"
            eager = _fit(options, size, "--encoder", encoder)
            report(f"{name}, eager", eager)
            if not options.eager:
                report(f"{name}, compiled", _fit(options, size, "--encoder", encoder, "--compile"), eager)


def report(name: str, found: dict[str, Any], eager: dict[str, Any] | None = None) -> None:
    """Print what a training was measured to take, against the eager one."""
    batch, rate = found["batch_size"], found["images_per_second"]
    faster = None if eager is None else rate / eager["images_per_second"]
    emit(row(f"{name}, batch {batch}", rate, "images/s", eager and "eager", faster))
    if found.get("mfu") is not None:
        emit(row(f"{name}, operations", found["mfu"], "of the datasheet's dense bf16 rate", None, None))
    if found.get("peak_memory_gib") is not None:
        peak = found["peak_memory_gib"]
        emit(row(f"{name}, peak memory", peak, "GiB", "uniflow plan", peak / found["planned_memory_gib"]))


def fsdp2(options: argparse.Namespace) -> None:
    """The loss of the last step under FSDP2 on one device over that without sharding: the same computation."""
    size = options.sizes[0]
    compiled = [] if options.eager else ["--compile"]
    plain, sharded = (_fit(options, size, *compiled, *strategy) for strategy in ((), ("--strategy", "fsdp2")))
    off = abs(sharded["last_loss"] / plain["last_loss"] - 1)
    emit(row("FSDP2 on one device, |loss over that without - 1|", off, "", "no sharding", off, target=1e-3))
    speed = plain["images_per_second"] / sharded["images_per_second"]
    emit(row("FSDP2 on one device, time of a step", 1 / sharded["images_per_second"], "s/image", "no sharding", speed))


def float8(options: argparse.Namespace) -> None:
    """A training step whose teacher computes in float8."""
    if find_spec("torchao") is None:
        return left_out("float8", "torchao is not installed")
    if options.device == "cpu" or torch.cuda.get_device_capability() < (8, 9):
        return left_out("float8", "it needs a GPU of compute capability 8.9 or above")
    plain, low = (_fit(options, options.sizes[0], "--compile", *more) for more in ((), ("--float8_teacher",)))
    ratio = low["images_per_second"] / plain["images_per_second"]
    emit(row("training step, teacher in float8", low["images_per_second"], "images/s", "teacher in bf16", ratio))
    off = abs(low["last_loss"] / plain["last_loss"] - 1)
    return emit(row("teacher in float8, |loss over that in bf16 - 1|", off, "", "teacher in bf16", off))


def inference(options: argparse.Namespace) -> None:
    """Time of encoding and of decoding at several batch sizes, eager and compiled."""
    tokenizer = _tokenizer(options).to(torch.bfloat16)
    side = tokenizer.encoder.spec.image_size
    mode = "reduce-overhead" if options.device == "cuda" else "default"
    for batch in (1, 2) if options.tiny else (1, 8, 64):
        images = torch.rand(batch, 3, side, side, device=options.device)
        noise = torch.randn_like(images)
        with torch.inference_mode():
            latents = tokenizer.encode(images)
        calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "encode": (tokenizer.encode, (images,)),
            "decode": (lambda z, n: tokenizer.decode(z, noise=n), (latents, noise)),
        }
        for name, (eager, arguments) in calls.items():
            compiled = [] if options.eager else [torch.compile(eager, mode=mode)]
            seconds, *faster = _seconds([eager, *compiled], arguments, options)
            emit(row(f"{name}, batch {batch}, eager, {batch / seconds:.4g} images/s", seconds, "s", None, None))
            for own in faster:
                label = f"{name}, batch {batch}, compiled, {batch / own:.4g} images/s"
                emit(row(label, own, "s", "eager", own / seconds, mode=mode))


def difference(options: argparse.Namespace) -> None:
    """How far a reconstruction in bfloat16 lies from that in float32."""
    tokenizer = _tokenizer(options)
    side = tokenizer.encoder.spec.image_size
    images = torch.rand(2, 3, side, side, device=options.device)
    noise = torch.randn_like(images)
    with torch.inference_mode():
        exact = tokenizer.reconstruct(images, noise=noise)
        low = tokenizer.to(torch.bfloat16).reconstruct(images, noise=noise).float()
    largest = float((low - exact).abs().max())
    decibel = float(psnr(low, exact).mean())
    emit(
        row("bfloat16 reconstruction, PSNR against float32", decibel, "dB", "float32", None, largest_difference=largest)
    )


def reading(options: argparse.Namespace) -> None:
    """Images/s from JPEG files to the device by `ImageFolder`, a worker for each core: where a faster step waits."""
    workers, count = (0, 8) if options.tiny else (os.cpu_count() or 1, 4096)
    size, batch = options.sizes[0], 2 if options.tiny else 64
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), count)
        data = ImageFolder(folder, size, batch_size=batch, num_workers=workers)
        loader = data.train_dataloader()
        for _ in range(2):  # workers are started in the first epoch
            start = time.perf_counter()
            images = sum(len(b["image"].to(options.device, non_blocking=True)) for b in loader)
            _wait(options)
            rate = images / (time.perf_counter() - start)
    emit(row(f"reading JPEGs of 500 x 375 pixels to {size}, {workers} workers", rate, "images/s", None, None))


def write_jpegs(folder: Path, count: int) -> None:
    """Smooth random pictures of 500 x 375 pixels as FOLDER/SPLIT/N.jpg; `count` to train on, 16 different ones."""
    generator = np.random.default_rng(0)
    different = [
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((500, 375), 3)
        for _ in range(16)
    ]
    for split, wanted in (("train", count), ("val", 2), ("test", 2)):
        (folder / split).mkdir()
        for number in range(wanted):
            different[number % 16].save(folder / split / f"{number:05d}.jpg", quality=90)


def generator(options: argparse.Namespace) -> None:
    """A DiT-B on the released tokenizer's latents: training steps, and images from noise, in bf16."""
    tokenizer = _tokenizer(options)
    channels = tokenizer.latent_spec.channels
    tokenizer.set_latent_statistics([0.0] * channels, [1.0] * channels, 1)
    size = tokenizer.encoder.spec.image_size // tokenizer.latent_spec.patch_size
    condition = LabelCondition(1000)
    shape: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 2} if options.tiny else {"width": 768}
    network = DiT(tokenizer.latent_spec, condition.spec, **({"num_heads": 12} | shape))
    model = Generator(tokenizer, network, condition, (size, size)).to(options.device)
    trained = torch.nn.ModuleList([network, condition])
    optimizer = FusedAdamW(trained.parameters(), lr=1e-4)
    batch = 2 if options.tiny else 64
    latents = torch.randn(batch, channels, size, size, device=options.device)
    labels, kept = torch.zeros(batch, dtype=torch.long, device=options.device), latents.new_zeros(batch).bool()
    low = torch.autocast(options.device, torch.bfloat16)

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad(), low:
            sum(network.loss(latents, condition(labels, kept)).values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()

    [seconds] = _seconds([step], (), options)
    emit(row(f"generator, training step, batch {batch}", batch / seconds, "images/s", None, None))
    network.requires_grad_(False)
    for count in (1, 2) if options.tiny else (1, 64):

        def sample(count: int = count) -> None:
            with low:
                model.sample(count=count, steps=2 if options.tiny else 50)

        [seconds] = _seconds([sample], (), options, rounds=2 if options.tiny else 5)
        emit(row(f"generator, sampling, batch {count}", count / seconds, "images/s", None, None))


def left_out(part: str, reason: str) -> None:
    """Say why a part is not measured."""
    print(f"gpu: {part} is left out: {reason}", file=sys.stderr)


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    torch.manual_seed(0)
    config = {**FIXED, **RELEASED, **(TINY if options.tiny else {})}
    tokenizer = Tokenizer(*official_parts(config)).eval().requires_grad_(False)
    shake(tokenizer)
    return tokenizer.to(options.device)


def _seconds(
    candidates: Sequence[Callable[..., Any]],
    arguments: tuple[Any, ...],
    options: argparse.Namespace,
    rounds: int = 20,
) -> list[float]:
    """Median time of the clock of each candidate, which take turns."""
    times: list[list[float]] = [[] for _ in candidates]
    rounds, warmup = (2, 1) if options.tiny else (rounds, 3)
    for number in range(warmup + rounds):
        for own, call in zip(times, candidates, strict=True):
            _wait(options)
            start = time.perf_counter()
            with torch.inference_mode():
                call(*arguments)
            _wait(options)
            if number >= warmup:
                own.append(time.perf_counter() - start)
    return [median(own) for own in times]


def _wait(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def _fit(options: argparse.Namespace, size: int, *more: str) -> dict[str, Any]:
    """benchmarks/gpu_fit.py in a process of its own; what it measured."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_fit.py"), "--device", options.device]
    command += ["--size", str(size), *more]
    command += ["--tiny", "--steps", "4", "--batch_size", "2"] if options.tiny else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"gpu: {' '.join(command[1:])} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
