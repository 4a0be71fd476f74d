"""Kills `uniflow fit` over and over, resumes it each time, and compares what it did with a run that nobody disturbed.

    python benchmarks/stress_resume.py --data scenes --rounds 20
    python benchmarks/stress_resume.py --data shards --processes 2 --rounds 20

A round starts the command, waits for a step drawn at random, and kills all its processes with SIGKILL: every other time
at once, else as soon as a checkpoint is being written. `--terminations` more rounds send SIGTERM to one process, and
expect exit code 75. Then the run is resumed to its end. Each life is a fork of this program, which calls the command's
`main`; so only the imports are saved. One JSON line for each result; the exit code is 1 if the two runs differ.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from uniflow.cli import main as uniflow
from uniflow.cli.app import PACKAGES
from uniflow.core.atomic import beside
from uniflow.tools.pack import pack

RECIPE = """
model:
  class_path: TokenizerTask
  init_args:
    encoder:
      class_path: SceneViT
      init_args: {weights: null, embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8, image_size: 32}
    decoder:
      class_path: PatchFlowDecoder
      init_args: {width: 32, global_depth: 1, num_heads: 2, flow_depth: 1, prediction: data}
    optimizer: {class_path: FusedAdamW, init_args: {lr: 1.0e-3}}
    distillation_weight: {class_path: Cosine, init_args: {start: 1.0, end: 0.1}}
ema: {class_path: EMA, init_args: {decay: 0.9}}
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  limit_val_batches: 1
  val_check_interval: 25
  check_val_every_n_epoch: null
checkpoint: {class_path: LastCheckpoint, init_args: {every_n_train_steps: 3}}
images: null
probe: null
monitor: null
"""
EPOCH = 72  # training pictures


class Record(Callback):
    """Writes a line a step to FOLDER/rankR.txt: step, learning rate, loss, and a digest of each picture served."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in batch["image"]]
        rate, loss = trainer.optimizers[0].param_groups[0]["lr"], float(outputs["loss"])
        with open(self.folder / f"rank{trainer.global_rank}.txt", "a") as file:
            file.write(f"{trainer.global_step} {rate.hex()} {loss.hex()} {','.join(digests)}\n")


class Stress:
    """One run that is disturbed, and one that is not.

    Args:
        folder: where both are, and their data.
        data: scenes, folder (of JPEG files) or shards.
        processes: 1, or more under DDP with gloo.
        steps: optimizer steps of the whole run.
        seed: of the moments at which it is killed.
    """

    def __init__(self, folder: Path, data: str, processes: int, steps: int, seed: int = 0) -> None:
        self.folder, self.processes, self.steps = folder.resolve(), processes, steps
        self.random = random.Random(seed)
        self.counts = dict.fromkeys(("killed", "killed_while_writing", "terminated", "corrupt", "missing"), 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = {**yaml.safe_load(RECIPE), "data": data_options(data, self.folder / "data")}
        strategy = "ddp" if processes > 1 else "auto"
        recipe["trainer"] |= {"max_steps": steps, "devices": processes, "strategy": strategy}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def start(self, name: str) -> list[int]:
        """Begin a life of the run `name`: the ids of its processes, each the first of a group."""
        run, port = self.folder / name, free_port()
        run.mkdir(exist_ok=True)
        words = ["fit", "-c", str(self.folder / "recipe.yaml"), "--run", str(run), "--ckpt_path", "auto"]
        words += ["--trainer.callbacks", "benchmarks.stress_resume.Record", "--trainer.callbacks.folder", str(run)]
        return [self._fork(words, rank, port) for rank in range(self.processes)]

    def _fork(self, words: list[str], rank: int, port: int) -> int:
        child = os.fork()
        if child:
            return child
        os.setpgid(0, 0)
        if self.processes > 1:  # as a launcher such as torchrun does
            os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = uniflow(words)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def finish(self, name: str) -> None:
        """Run `name` to its end.

        Raises:
            RuntimeError: if it does not end well.
        """
        codes = wait(self.start(name))
        if any(codes):
            raise RuntimeError(f"{name} ended with {codes}; see {self.folder / 'log.txt'}")

    def disturb(self, rounds: int, terminations: int) -> None:
        """Let the run "disturbed" live `rounds` + `terminations` short lives."""
        kinds = ["moment" if number % 2 else "write" for number in range(rounds)] + ["term"] * terminations
        self.random.shuffle(kinds)
        targets = sorted(self.random.sample(range(2, self.steps - 5), len(kinds)))
        for kind, target in zip(kinds, targets, strict=True):
            self._life(kind, target)

    def _life(self, kind: str, target: int) -> None:
        last = self.folder / "disturbed" / "last.ckpt"
        processes, there, sent = self.start("disturbed"), last.exists(), False
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            self.counts["missing"] += there and not last.exists()
            there = there or last.exists()
            if ended := [pid for pid in processes if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]:
                break
            reached = self.reached("disturbed") >= target
            if reached and kind == "term" and not sent:
                os.kill(self.random.choice(processes), signal.SIGTERM)
                sent = True
            if reached and (kind == "moment" or (kind == "write" and beside(last).exists())):
                break
            time.sleep(0 if reached else 0.005)
        if kind == "moment":
            time.sleep(self.random.uniform(0, 0.1))
        for pid in processes if kind != "term" else ():
            os.killpg(pid, signal.SIGKILL)
        codes = wait(processes)
        if kind == "term":
            if codes != [75] + [0] * (self.processes - 1):
                raise RuntimeError(f"after SIGTERM the processes ended with {codes}; see {self.folder / 'log.txt'}")
            self.counts["terminated"] += 1
        else:
            if ended:
                raise RuntimeError(f"the processes ended by themselves with {codes}; see {self.folder / 'log.txt'}")
            self.counts["killed"] += 1
            self.counts["killed_while_writing"] += beside(last).exists()
        self.counts["missing"] += there and not last.exists()
        self.counts["corrupt"] += last.exists() and not readable(last)

    def reached(self, name: str) -> int:
        """The highest step that the run has recorded."""
        path = self.folder / name / "rank0.txt"
        return max((step for step, _ in records(path)), default=0) if path.exists() else 0

    def compare(self) -> dict[str, Any]:
        """What differs between the two runs; all numbers are 0 if nothing does."""
        wrong_steps = replays = differing_replays = 0
        for rank in range(self.processes):
            whole = dict(records(self.folder / "whole" / f"rank{rank}.txt"))
            seen: dict[int, str] = {}
            for step, line in records(self.folder / "disturbed" / f"rank{rank}.txt"):
                replays += step in seen
                differing_replays += step in seen and seen[step] != line
                seen[step] = line
            wrong_steps += sum(seen.get(step) != whole.get(step) for step in seen.keys() | whole.keys())
        whole, ours = (
            torch.load(self.folder / name / "last.ckpt", weights_only=True) for name in ("whole", "disturbed")
        )
        exported = [(self.folder / n / "tokenizer/model.safetensors").read_bytes() for n in ("whole", "disturbed")]
        keys = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "Scenes", "ImageFolder", "WebDataset")
        return {
            "wrong_steps": wrong_steps,
            "differing_replays": differing_replays,
            "differing_states": [key for key in keys if not same(whole.get(key), ours.get(key))],
            "differing_exports": int(exported[0] != exported[1]),
            "replayed_steps": replays,
        }


def data_options(kind: str, folder: Path) -> dict[str, Any]:
    """The data section of the recipe; pictures are drawn into `folder` where it needs some."""
    sizes = {"batch_size": 4, "size": 32}
    if kind == "scenes":
        lengths = {"train_length": EPOCH, "val_length": 8, "test_length": 8}
        return {"class_path": "Scenes", "init_args": {**sizes, **lengths, "num_workers": 0}}
    generator = np.random.default_rng(0)
    for split, count in (("train", EPOCH), ("val", 8), ("test", 8)):
        for number in range(count):
            path = folder / "jpeg" / split / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    if kind == "folder":
        options = {"root": str(folder / "jpeg"), "val": None, "test": None, "num_workers": 2}
        return {"class_path": "ImageFolder", "init_args": {**sizes, **options}}
    pack(folder / "jpeg", folder / "shards", shard_size=12, overwrite=True)
    shards = {split: str(folder / "shards" / f"{split}-*.tar") for split in ("train", "val", "test")}
    return {"class_path": "WebDataset", "init_args": {**sizes, **shards, "num_workers": 2, "shuffle_buffer": 8}}


def records(path: Path) -> Iterator[tuple[int, str]]:
    """(step, the rest of its line), without a line that a kill has cut off."""
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield int(line.split(" ", 1)[0]), line


def readable(path: Path) -> bool:
    """Whether a checkpoint can be read to its end."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def same(left: Any, right: Any) -> bool:
    """Whether two states are equal, bit by bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    return left == right


def wait(processes: list[int]) -> list[int]:
    """The exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stress(folder: Path, data: str, processes: int, rounds: int, terminations: int, seed: int = 0) -> dict[str, Any]:
    """Disturb a run, compare it with an undisturbed one, and return all counts."""
    for package in PACKAGES:  # once, for all lives
        importlib.import_module(package)
    test = Stress(folder, data, processes, steps=20 * (rounds + terminations) + 20, seed=seed)
    test.finish("whole")
    test.disturb(rounds, terminations)
    test.finish("disturbed")
    return {"steps": test.steps, **test.counts, **test.compare()}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("scenes", "folder", "shards"), default="scenes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--terminations", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        results = stress(folder, options.data, options.processes, options.rounds, options.terminations, options.seed)
    for name, value in results.items():
        line = {"name": name, "value": value, "data": options.data, "processes": options.processes}
        print(json.dumps({**line, "rounds": options.rounds, "seed": options.seed}), flush=True)
    harmless = ("steps", "killed", "killed_while_writing", "terminated", "replayed_steps")
    return int(any(value for name, value in results.items() if name not in harmless))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
