"""Malformed inputs, made from a seed: each must be accepted or refused with one line. `make fuzz`; exits 1 on a fault.

Nothing is trained: the cases stop at the parsed configuration, the loaded image, shard or tokenizer.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

import uniflow
from uniflow.cli import main as command_line
from uniflow.data.images.reading import ImageReadError, read_image

SECONDS = 60  # for one case; a case that takes longer hangs
REFUSED, ACCEPTED, FAULT = "refused with one line", "accepted", "FAULT"
NUMBERS = ("-1", "0", "1e309", "nan", "inf", "1e3", "9" * 400, "", "null", "true", "[1", "{", "é", "0x1F", "1_000")
OPTIONS = (
    "trainer.max_steps", "trainer.devices", "trainer.gradient_clip_val", "data.batch_size", "data.size",
    "model.encoder.depth", "model.distillation_weight", "model.optimizer.lr", "model.decoder.width", "ema.decay",
    "seed_everything",
)  # fmt: skip
TOOL_OPTIONS = ("size", "steps", "batch_size", "num_workers", "crop", "worst")
PIECES = (
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
Case = tuple[str, Callable[[], tuple[str, str]]]


def main() -> int:
    """Run all cases and print the counts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="how often the random cases are drawn")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, case in cases(random.Random(options.seed), options.repeats):
            outcome, text = _judged(case)
            counts[name.split()[0], outcome] += 1
            if outcome == FAULT:
                print(f"FAULT {name}: {text}", flush=True)
        os.chdir("/")
    for kind in sorted({kind for kind, _ in counts}):
        row = ", ".join(f"{counts[kind, outcome]} {outcome}" for outcome in (REFUSED, ACCEPTED, FAULT))
        print(f"{kind}: {row}")
    faults = sum(number for (_, outcome), number in counts.items() if outcome == FAULT)
    print(f"{counts.total()} cases, {faults} faults")
    return 1 if faults else 0


def cases(draw: random.Random, repeats: int) -> Iterator[Case]:
    """All cases: a name whose first word is the kind, and a call that returns the outcome and its text."""
    yield from _numbers()
    for number in range(repeats):
        yield from _yaml(draw, number)
        yield from _images(draw, number)
        yield from _shards(draw, number)
        yield from _checkpoints(draw, number)


def _numbers() -> Iterator[Case]:
    Image.new("RGB", (32, 32), "red").save("good.png")
    for option in OPTIONS:
        for value in NUMBERS:
            words = ["fit", "-c", "quickstart", f"--{option}={value}", "--print_config"]
            yield f"numbers --{option}={value[:20]}", _command(words)
    for option in TOOL_OPTIONS:
        for value in NUMBERS[:-3]:
            words = ["evaluate", "embedded", "--images", "good.png", "--size", "32", f"--{option}={value}"]
            yield f"numbers evaluate --{option}={value[:20]}", _command(words)


def _yaml(draw: random.Random, number: int) -> Iterator[Case]:
    text = (
        b"model: {class_path: TokenizerTask, init_args: {encoder: SceneViT}}\ndata: scenes\ntrainer:\n  max_steps: 3\n"
    )
    for index in range(80):
        file = Path(f"recipe_{number}_{index}.yaml")
        file.write_bytes(_changed(text, draw, PIECES))
        yield f"yaml {file.name}", _command(["fit", "-c", str(file), "--print_config"])


def _images(draw: random.Random, number: int) -> Iterator[Case]:
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        whole = Path(f"whole.{suffix}")
        Image.effect_noise((40, 30), 50).convert("RGB").save(whole)
        for index in range(12):
            file = Path(f"image_{number}_{index}.{suffix}")
            file.write_bytes(_changed(whole.read_bytes(), draw, (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"IEND")))
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
        file.write_bytes(_changed(content, draw, (b"", b"\0" * 512, b"\xff" * 64)) if index else content)
        words = ["evaluate", "embedded", "--data", "WebDataset", "--data.train", "train.tar", "--data.val", "val.tar"]
        words += ["--data.size", "32", "--data.num_workers", "0", "--data.batch_size", "2", "--data.test", str(file)]
        yield f"shards {file.name}", _command(words, good=index == 0)


def _checkpoints(draw: random.Random, number: int) -> Iterator[Case]:
    source = Path(uniflow.__file__).parent / "pretrained" / "embedded"
    for name in ("config.json", "model.safetensors"):
        for index in range(20):
            folder = Path(f"tokenizer_{number}_{index}_{name}")
            shutil.copytree(source, folder)
            file = folder / name
            content = file.read_bytes()
            pieces = (b"", b"\0", b"{}", b"null", b"1e999")
            file.write_bytes(_changed(content, draw, pieces, head=3000 if index % 2 else None) if index else content)
            yield f"checkpoints {folder}", _command(["summary", str(folder)], good=index == 0)


def _changed(content: bytes, draw: random.Random, pieces: tuple[bytes, ...], head: int | None = None) -> bytes:
    """`content`, cut short or with one to three places overwritten, the first `head` bytes preferred."""
    if draw.random() < 0.2:
        return content[: draw.randrange(len(content))]
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(head or len(content), len(content)))
        piece = draw.choice(pieces) or bytes([draw.randrange(256)])
        content = content[:place] + piece + content[place + draw.choice((0, len(piece))) :]
    return content


def _command(words: list[str], good: bool = False) -> Callable[[], tuple[str, str]]:
    """A case that calls `uniflow WORDS`; refusing an input that is `good` is a fault."""

    def call() -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = command_line(words)
            except SystemExit as stop:
                code = stop.code
        errors = [line for line in err.getvalue().splitlines() if line.startswith("uniflow: error: ")]
        if code == 0 and not errors:
            return ACCEPTED, ""
        clear = not good and code in (1, 2) and len(errors) == 1 and "Traceback" not in err.getvalue()
        return (REFUSED if clear else FAULT), f"exit code {code}, {err.getvalue()[-300:]!r}"

    return call


def _read(file: Path) -> tuple[str, str]:
    try:
        read_image(file)
    except ImageReadError as error:
        return (FAULT if "\n" in str(error) else REFUSED), str(error)
    return ACCEPTED, ""


def _judged(case: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    signal.alarm(SECONDS)
    try:
        return case()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return FAULT, "".join(traceback.format_exception(error)[-2:]).replace("\n", " ")[:400]
    finally:
        signal.alarm(0)


def _hangs(*_: Any) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
