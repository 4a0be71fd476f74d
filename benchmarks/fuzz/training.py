"""Cases of training and evaluation: numbers in options, recipes, images, shards, tokenizers."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import webdataset
from PIL import Image

import uniflow
from benchmarks.fuzz.cases import ACCEPTED, FAULT, NUMBERS, REFUSED, Case, Outcome, changed, command
from uniflow.data.images.reading import ImageReadError, read_image

EMBEDDED = Path(uniflow.__file__).parent / "pretrained" / "embedded"
OPTIONS = (
    "trainer.max_steps", "trainer.devices", "trainer.gradient_clip_val", "data.batch_size", "data.size",
    "model.encoder.depth", "model.distillation_weight", "model.optimizer.lr", "model.decoder.width", "ema.decay",
    "seed_everything",
)  # fmt: skip
TOOL_OPTIONS = ("size", "steps", "batch_size", "num_workers", "crop", "worst")
YAML_PIECES = (
    b"",
    b"\0",
    b"\xff\xfe",
    b": :",
    b"- [",
    b"{" * 200,
    b"&a *a",
    b"!!python/name:os.system ",
    b"\t",
    b"<<: *x\n",
)


def numbers() -> Iterator[Case]:
    """Values that options cannot take, or can."""
    Image.new("RGB", (32, 32), "red").save("good.png")
    for option in OPTIONS:
        for value in NUMBERS:
            words = ["fit", "-c", "quickstart", f"--{option}={value}", "--print_config"]
            yield f"numbers --{option}={value[:20]}", command(words)
    for option in TOOL_OPTIONS:
        for value in NUMBERS[:-3]:
            words = ["evaluate", "embedded", "--images", "good.png", "--size", "32", f"--{option}={value}"]
            yield f"numbers evaluate --{option}={value[:20]}", command(words)


def drawn(draw: random.Random, number: int) -> Iterator[Case]:
    """Files with random damage."""
    yield from _yaml(draw, number)
    yield from _images(draw, number)
    yield from _shards(draw, number)
    yield from _checkpoints(draw, number)


def _yaml(draw: random.Random, number: int) -> Iterator[Case]:
    text = (
        b"model: {class_path: TokenizerTask, init_args: {encoder: SceneViT}}\ndata: scenes\ntrainer:\n  max_steps: 3\n"
    )
    for index in range(80):
        file = Path(f"recipe_{number}_{index}.yaml")
        file.write_bytes(changed(text, draw, YAML_PIECES))
        yield f"yaml {file.name}", command(["fit", "-c", str(file), "--print_config"])


def _images(draw: random.Random, number: int) -> Iterator[Case]:
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        whole = Path(f"whole.{suffix}")
        Image.effect_noise((40, 30), 50).convert("RGB").save(whole)
        for index in range(12):
            file = Path(f"image_{number}_{index}.{suffix}")
            file.write_bytes(changed(whole.read_bytes(), draw, (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"IEND")))
            yield f"images {file.name}", lambda file=file: _read(file)


def _shards(draw: random.Random, number: int) -> Iterator[Case]:
    for split in ("train", "val", "whole"):  # no two splits may share a shard
        with webdataset.TarWriter(f"{split}.tar") as shard:
            for index in range(4):
                key = f"{split}{index:06d}"
                shard.write({"__key__": key, "png": Path("good.png").read_bytes(), "cls": str(index % 2)})
    for index in range(20):
        file = Path(f"shard_{number}_{index}.tar")
        content = Path("whole.tar").read_bytes()
        file.write_bytes(changed(content, draw, (b"", b"\0" * 512, b"\xff" * 64)) if index else content)
        words = ["evaluate", "embedded", "--data", "WebDataset", "--data.train", "train.tar", "--data.val", "val.tar"]
        words += ["--data.size", "32", "--data.num_workers", "0", "--data.batch_size", "2", "--data.test", str(file)]
        yield f"shards {file.name}", command(words, good=index == 0)


def _checkpoints(draw: random.Random, number: int) -> Iterator[Case]:
    for name in ("config.json", "model.safetensors"):
        for index in range(20):
            folder = Path(f"tokenizer_{number}_{index}_{name}")
            shutil.copytree(EMBEDDED, folder)
            file = folder / name
            content = file.read_bytes()
            pieces = (b"", b"\0", b"{}", b"null", b"1e999")
            file.write_bytes(changed(content, draw, pieces, head=3000 if index % 2 else None) if index else content)
            yield f"checkpoints {folder}", command(["summary", str(folder)], good=index == 0)


def _read(file: Path) -> Outcome:
    try:
        read_image(file)
    except ImageReadError as error:
        return (FAULT if "\n" in str(error) else REFUSED), str(error)
    return ACCEPTED, ""
