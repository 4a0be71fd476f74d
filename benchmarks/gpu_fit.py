"""Training speed of the DINOv2-L/14 recipe on one GPU: images/s, MFU and peak memory, written to docs/results.md.

Random weights and rendered scenes, bf16-mixed: what is measured is the step, not the result.

    make gpu
    python benchmarks/gpu_fit.py --device cpu --steps 4 --tiny     # the same path at tiny size, writes nothing
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from uniflow.cli import main
from uniflow.tokenizer.summary import model_summary

RECIPE = "configs/recipes/imagenet.yaml"
RESULTS = Path("docs/results.md")
MARKER = "<!-- gpu_fit: the line below is written by benchmarks/gpu_fit.py -->"
# Dense bf16 matrix products, by the vendor's datasheet.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
TINY = ["--model.encoder.depth", "2", "--model.encoder.embed_dim", "64", "--model.encoder.num_heads", "2",
        "--model.decoder.width", "64", "--model.decoder.num_heads", "2", "--model.decoder.flow_depth", "2"]  # fmt: skip


class Stopwatch(Callback):
    """Times the steps after a warm-up, and counts the operations of one image's training step."""

    result: dict[str, Any]

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.warmup:
            self._wait(pl_module)
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.start, self.images = time.perf_counter(), 0
        elif trainer.global_step > self.warmup:
            self.images += len(batch["image"])
        self.loss = outputs["loss"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait(pl_module)
        rate = self.images / (time.perf_counter() - self.start)
        parts = model_summary(pl_module.tokenizer, trainer.datamodule.size)
        forward = {name: row["gflop"] for name, row in parts.items()}
        # A backward pass costs two forward passes; the teacher has none.
        gflop = 3 * forward["total"] + forward["encoder"]
        type(self).result = {
            "images_per_second": rate,
            "gflop_per_image": gflop,
            "tflops": rate * gflop / 1e3,
            "last_loss": float(self.loss),
        }

    def _wait(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()


def fit(arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["-c", RECIPE, "--run", str(arguments.run), "--model.encoder.weights", "null",
               "--data", "Scenes", "--data.size", str(arguments.size), "--data.batch_size", str(arguments.batch_size),
               "--data.num_workers", str(arguments.workers), "--data.train_length", "1000000",
               "--trainer.accelerator", arguments.device, "--trainer.devices", "1",
               "--trainer.max_steps", str(arguments.steps), "--trainer.max_epochs", "-1",
               "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "50",
               "--trainer.callbacks", "benchmarks.gpu_fit.Stopwatch",
               "--trainer.callbacks.warmup", str(arguments.steps // 4),
               "--trainer.strategy", arguments.strategy,
               "--model.compile_blocks", str(arguments.compile).lower()]  # fmt: skip
    if arguments.tiny:
        options += TINY
    if code := main(["fit", *options]):
        raise SystemExit(code)
    # The callback was made by the CLI, under the module's import name.
    from benchmarks.gpu_fit import Stopwatch as Imported

    result = {"batch_size": arguments.batch_size, "steps": arguments.steps, **Imported.result}
    if arguments.device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
        result |= {
            "device": name,
            "torch": torch.__version__,
            "mfu": result["tflops"] / peak if peak else None,
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
    return result


def write(result: dict[str, Any]) -> None:
    """Put the measurement under the marker in docs/results.md."""
    line = (
        f"{datetime.date.today()}, {result['device']}, torch {result['torch']}: "
        f"{result['images_per_second']:.0f} images/s, "
        f"MFU {result['mfu']:.3f} of the datasheet's dense bf16 rate, peak memory {result['peak_memory_gib']:.1f} GiB "
        f"(batch {result['batch_size']}, {result['gflop_per_image']:.0f} GFLOP an image, teacher included)."
    )
    text = RESULTS.read_text()
    head, _, tail = text.partition(MARKER)
    RESULTS.write_text(f"{head}{MARKER}\n{line}\n" + tail.lstrip("\n").partition("\n")[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--run", type=Path, default=Path("runs") / f"gpu_fit_{int(time.time())}")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--strategy", default="auto", help="of the trainer, such as fsdp2")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--dry", action="store_true", help="print the measurement only")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_fit: no CUDA device; try --device cpu --tiny")
    measured = fit(arguments)
    print(json.dumps(measured))
    if arguments.device == "cuda" and not arguments.tiny and not arguments.dry:
        write(measured)
