"""Speed on one GPU: the training step with and without FSDP2, encoding and decoding, and bf16 against float32.

Random weights. Each figure is a line of JSON. Training goes through `uniflow fit` (benchmarks/gpu_fit.py) with ViT-L/14
in bf16 and compiled blocks; encoding and decoding are compiled whole, on a GPU as CUDA graphs.

    python benchmarks/gpu.py [--parts train fsdp2 inference difference]
    python benchmarks/gpu.py --device cpu --tiny     # the same path at tiny size
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import emit, row
from benchmarks.reconstruction import RELEASED, TINY, shake
from uniflow import Tokenizer
from uniflow.metrics import psnr
from uniflow.tokenizer.official import FIXED, official_parts

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("train", "fsdp2", "inference", "difference")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few steps, to try the script")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: no CUDA device; try --device cpu --tiny")
    torch.set_float32_matmul_precision("high")
    for part in options.parts:
        globals()[part](options)
    return 0


def train(options: argparse.Namespace) -> None:
    """Images/s, share of the peak rate and peak memory of a training step, at 224 and 448 px."""
    for size in (28,) if options.tiny else (224, 448):
        found = _fit(options, size)
        for key, unit in (("images_per_second", "images/s"), ("mfu", "of the peak"), ("peak_memory_gib", "GiB")):
            if found.get(key) is not None:
                emit(row(f"training step, {size} px, {key}", found[key], unit, None, None, batch=found["batch_size"]))


def fsdp2(options: argparse.Namespace) -> None:
    """The loss of the last step under FSDP2 on one device over that without sharding: the same computation."""
    size = 28 if options.tiny else 224
    plain, sharded = (_fit(options, size, *strategy) for strategy in ((), ("--strategy", "fsdp2")))
    ratio = sharded["last_loss"] / plain["last_loss"]
    off = abs(ratio - 1)
    emit(row("FSDP2 on one device, |loss over that without - 1|", off, "", "no sharding", off, target=1e-3))
    speed = plain["images_per_second"] / sharded["images_per_second"]
    emit(row("FSDP2 on one device, time of a step", 1 / sharded["images_per_second"], "s/image", "no sharding", speed))


def inference(options: argparse.Namespace) -> None:
    """Time of encoding and of decoding at several batch sizes, compiled, and images/s."""
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
            compiled = eager if options.eager else torch.compile(eager, mode=mode)
            seconds, baseline = _seconds([compiled, eager], arguments, options)
            more = {"images_per_second": round(batch / seconds, 1), "baseline_value": baseline, "mode": mode}
            emit(row(f"{name}, batch {batch}, compiled", seconds, "s", "eager", seconds / baseline, **more))


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


def _tokenizer(options: argparse.Namespace) -> Tokenizer:
    torch.manual_seed(0)
    config = {**FIXED, **RELEASED, **(TINY if options.tiny else {})}
    tokenizer = Tokenizer(*official_parts(config)).eval().requires_grad_(False)
    shake(tokenizer)
    return tokenizer.to(options.device)


def _seconds(
    candidates: Sequence[Callable[..., Any]], arguments: tuple[Any, ...], options: argparse.Namespace
) -> list[float]:
    """Median time of the clock of each candidate, which take turns."""
    times: list[list[float]] = [[] for _ in candidates]
    rounds, warmup = (2, 1) if options.tiny else (20, 3)
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
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_fit.py"), "--device", options.device]
        command += ["--size", str(size), "--run", folder, "--dry", *more]
        command += ["--tiny", "--steps", "4", "--batch_size", "2", "--workers", "0"] if options.tiny else []
        command += [] if options.eager else ["--compile"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"gpu: {' '.join(command[1:])} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
