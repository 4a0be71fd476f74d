"""A training of the ImageNet recipe on one device: images/s, MFU and peak memory against the plan, as a line of JSON.

Random weights and random pixels that lie ready in memory, bf16-mixed: what is measured is the step, not the reading
nor the result. The training goes through `uniflow fit`, the plan through `uniflow plan`.

    python benchmarks/gpu_fit.py --encoder l14 --compile
    python benchmarks/gpu_fit.py --device cpu --steps 4 --tiny     # the same path at tiny size
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import Repeated
from uniflow.cli import main
from uniflow.tokenizer.summary import model_summary

RECIPE = "configs/recipes/imagenet.yaml"
ENCODERS = ("s14", "l14")  # of configs/encoders/dinov2_*.yaml
# Dense bf16 matrix products, by the vendor's datasheet.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
TINY = ["--model.encoder.depth", "2", "--model.encoder.embed_dim", "64", "--model.encoder.num_heads", "2",
        "--model.decoder.width", "64", "--model.decoder.num_heads", "2", "--model.decoder.flow_depth", "2"]  # fmt: skip


class RandomImages(LightningDataModule):
    """The same batch of random pixels again and again.

    Args:
        size: side of the images in pixels.
        batch_size: images in a batch.
        train_length: images in an epoch.
    """

    def __init__(self, size: int = 224, batch_size: int = 64, train_length: int = 1_000_000) -> None:
        super().__init__()
        self.size, self.batch_size, self.train_length = size, batch_size, train_length

    def train_dataloader(self) -> Any:
        """Batches of uint8 pixels, in page-locked memory where there is a GPU."""
        shape = (self.batch_size, 3, self.size, self.size)
        # Of a generator of their own: when a loader is made differs between strategies.
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = images.pin_memory() if torch.cuda.is_available() else images
        return Repeated({"image": images}, self.train_length // self.batch_size)


class Float8Teacher(Callback):
    """The teacher's linear layers compute in float8 (torchao): weights and inputs, each with one scale.

    It needs torchao, and a GPU of compute capability 8.9 or above.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

        quantize_(pl_module.teacher.encoder, Float8DynamicActivationFloat8WeightConfig())


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
    """Train, and say how fast; on a GPU also the memory that it took, and that of the plan."""
    recipe = ["-c", RECIPE, "--model.encoder", f"configs/encoders/dinov2_{arguments.encoder}.yaml",
              "--model.encoder.weights", "null", "--model.start", "random",
              "--data", "benchmarks.gpu_fit.RandomImages", "--data.size", str(arguments.size),
              "--data.batch_size", str(arguments.batch_size), "--trainer.devices", "1",
              "--trainer.max_steps", str(arguments.steps), "--trainer.max_epochs", "-1",
              *(TINY if arguments.tiny else [])]  # fmt: skip
    callbacks = [{"class_path": "benchmarks.gpu_fit.Stopwatch", "init_args": {"warmup": arguments.steps // 4}}]
    callbacks += [{"class_path": "benchmarks.gpu_fit.Float8Teacher"}] if arguments.float8_teacher else []
    with tempfile.TemporaryDirectory() as folder:
        options = ["--run", f"{folder}/run", "--trainer.accelerator", arguments.device,
                   "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "50",
                   "--trainer.callbacks", json.dumps(callbacks), "--trainer.strategy", arguments.strategy,
                   "--model.compile_blocks", str(arguments.compile).lower()]  # fmt: skip
        if code := main(["fit", *recipe, *options]):
            raise SystemExit(code)
        planned = plan(recipe, Path(folder) / "plan.json", arguments.strategy)
    # The callback was made by the CLI, under the module's import name.
    from benchmarks.gpu_fit import Stopwatch as Imported

    result = {"batch_size": arguments.batch_size, "steps": arguments.steps, **Imported.result}
    result["planned_memory_gib"] = planned / 2**30
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


def plan(recipe: list[str], file: Path, strategy: str) -> int:
    """Bytes of one GPU by `uniflow plan` for the same options, in bf16-mixed precision without checkpointing."""
    with contextlib.redirect_stdout(io.StringIO()):
        if code := main(["plan", *recipe, "--json", str(file)]):
            raise SystemExit(code)
    wanted = {"precision": "bf16-mixed", "strategy": "fsdp2" if strategy == "fsdp2" else "ddp", "checkpointing": False}
    return next(row["total"] for row in json.loads(file.read_text())["memory"] if row.items() >= wanted.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--encoder", choices=ENCODERS, default="l14", help="DINOv2 of this size")
    parser.add_argument("--steps", type=int, default=80, help="a quarter of them is not timed")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--strategy", default="auto", help="of the trainer, such as fsdp2")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--float8_teacher", action="store_true", help="by torchao, compute capability 8.9 or above")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_fit: no CUDA device; try --device cpu --tiny")
    print(json.dumps(fit(arguments)))
