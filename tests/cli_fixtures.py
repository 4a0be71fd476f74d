"""Fixtures of the tests of the command line: `uniflow` in this process, and any recipe at tiny size."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  # its loggers, before any test
import numpy as np
import pytest
import torch
import webdataset
from coco_fixtures import annotation, write_coco
from jsonargparse import Namespace
from PIL import Image

from uniflow.cli import main

PROJECT = Path(__file__).parent / "cli" / "project"
REPOSITORY = Path(__file__).parents[1]


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error may write, with nothing but Lightning's notes around it."""
        lines = [line for line in self.err.splitlines() if line.startswith("uniflow: error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert "usage:" not in self.err + self.out
        assert self.code in (1, 2, 74)
        return lines[0].removeprefix("uniflow: error: ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's own parts and a tiny recipe."""
    for file in PROJECT.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("UNIFLOW_DEBUG", "UNIFLOW_RUN"):
        monkeypatch.delenv(name, raising=False)
    interrupt = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it after an interrupt


@pytest.fixture
def uniflow(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*args: str) -> Result:
        capfd.readouterr()
        code = exit_code(*args)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def exit_code(*args: str) -> int:
    """`uniflow ARGS` in this process."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # they hold on to the stderr of the first import
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr
    try:
        return main(list(args))
    except SystemExit as exit_:  # argparse leaves this way after --help and --print_config
        return exit_.code if isinstance(exit_.code, int) else 1


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `uniflow fit -c recipe.yaml --run runs/a`, which is run once for all tests."""
    return fit_in(tmp_path_factory.mktemp("fitted"))


def fit_in(folder: Path, *options: str) -> Path:
    """The folder that `uniflow fit -c recipe.yaml --run runs/a OPTIONS` makes in `folder`."""
    shutil.copy(PROJECT / "recipe.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        assert exit_code("fit", "-c", "recipe.yaml", "--run", "runs/a", *options) == 0
    return folder / "runs" / "a"


@pytest.fixture
def fitted(project: Path, fitted_once: Path) -> Path:
    """runs/a of the project, as `uniflow fit -c recipe.yaml --run runs/a` leaves it."""
    shutil.copytree(fitted_once, "runs/a")
    return Path("runs/a")


class _Parsed(Exception):
    pass


@pytest.fixture(scope="session")
def fit_parser() -> Any:
    """The parser of `uniflow fit`."""
    from uniflow.cli import app, swap

    class ParserOnly(app.UniflowCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Parsed(self._parser("fit"))

    swap.install()
    for package in app.PACKAGES:
        importlib.import_module(package)
    with pytest.raises(_Parsed) as caught:
        ParserOnly("fit", [])
    return caught.value.args[0]


@pytest.fixture
def resolve(fit_parser: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Options of `uniflow fit` -> the configuration that they amount to."""

    def call(*args: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(str(Path.cwd()))
        return plain(fit_parser.parse_args(args))

    return call


def plain(value: Any) -> Any:
    """Nested dicts, without the paths that jsonargparse remembers and without the list of config files."""
    if isinstance(value, Namespace):
        return {k: plain(v) for k, v in vars(value).items() if k not in ("__path__", "config")}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "__path__"}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


# Part or data module -> what makes it tiny; only what its class takes is used.
TINY = {
    "model.encoder": {"weights": None, "embed_dim": 16, "depth": 4, "num_heads": 2, "gradient_checkpointing": False},
    "model.source.encoder": {"weights": None, "embed_dim": 16, "depth": 4, "num_heads": 2},
    "model.decoder": {
        "width": 32,
        "min_width": 32,
        "num_heads": 2,
        "depth": 1,
        "global_depth": 1,
        "flow_depth": 1,
        "head_depth": 1,
    },
    "model.bottleneck": {"channels": 8},
    "model.generator": {
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "head_width": 16,
        "head_depth": 1,
        "steps": 2,
        "flow_steps": 2,
    },
    "model.start": {"images": 4, "tokens": 16},
    "model.space": {"images": 8},
    "data": {
        "train_length": 8,
        "val_length": 4,
        "test_length": 4,
        "epoch_length": 8,
        "batch_size": 2,
        "num_workers": 0,
        "shuffle_buffer": 2,
    },
}


def _class_name(value: Any) -> str:
    """The class that a resolved slot names, without its package; nothing for what is not a class."""
    return value["class_path"].rpartition(".")[2] if isinstance(value, dict) and "class_path" in value else ""


TINY_SIZE = 112  # a multiple of the patches of 14 and 16 pixels
TINY_TRAINER = {
    "accelerator": "cpu",
    "precision": "32-true",  # bfloat16 is many times slower on most CPUs
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "max_steps": 2,
    "max_epochs": -1,
    "max_time": None,
    "accumulate_grad_batches": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "val_check_interval": 2,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


def tiny_options(config: dict[str, Any], given: str = "") -> list[str]:
    """Options that make a resolved configuration of `uniflow fit` run for two steps on a CPU, offline.

    Args:
        config: as `resolve` gives it.
        given: the command line, whose own options for parts and data stay.
    """
    values = {f"trainer.{name}": value for name, value in TINY_TRAINER.items()}
    start = config["model"].get("init_args", {}).get("start")
    if config["model"].get("init_args", {}).get("init_from"):
        values["model.init_from"] = None  # weights fit their own size only
    for slot, wanted in TINY.items():
        node: Any = config
        for name in slot.split("."):
            node = node.get("init_args", {}).get(name) if "class_path" in node else node.get(name)
            node = node if isinstance(node, dict) else {}
        taken = node.get("init_args") or {}
        if slot == "model.encoder" and _class_name(start) == "CopiedWeights":
            continue  # weights are copied into it, which fit its own size only
        values |= {f"{slot}.{name}": value for name, value in wanted.items() if name in taken}
    size = (config["data"].get("init_args") or {}).get("size")
    if isinstance(size, int) and size > TINY_SIZE:
        values["data.size"] = TINY_SIZE
    stays = {word.removeprefix("--") for word in given.split() if not word.startswith("--trainer.")}
    options = {name: "null" if value is None else str(value) for name, value in values.items() if name not in stays}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def write_codes(folder: Path) -> Path:
    """A small discrete tokenizer of two codebooks, with latent statistics, saved in `folder`."""
    from tiny import ENCODER, REGRESSION

    from uniflow import Tokenizer
    from uniflow.bottleneck import FSQBottleneck

    encoder = ENCODER()
    bottleneck = FSQBottleneck(encoder.spec, levels=(5, 4), num_codebooks=2)
    tokenizer = Tokenizer(encoder, bottleneck, REGRESSION(bottleneck.spec))
    for parameter in tokenizer.decoder.parameters():  # it starts as zero, where all pictures are grey
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tokenizer.set_latent_statistics([0.1] * 4, [0.5] * 4, 9)
    tokenizer.save_pretrained(folder)
    return folder


def write_photos(folder: Path, splits: tuple[str, ...] = ("train", "val", "test"), count: int = 4) -> Path:
    """Small pictures of two classes in `folder`/SPLIT/CLASS."""
    for split in splits:
        for number in range(count):
            path = folder / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            ramp = np.linspace(0, 255, 256, dtype=np.uint8)
            pixels = np.stack(
                [np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.full((256, 256), number)], -1
            )
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def write_conversations(path: Path, count: int = 6) -> Path:
    """A file of conversations about the pictures of `write_photos`; each third is text alone."""
    samples: list[dict[str, Any]] = []
    for number in range(count):
        turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": "red"}]
        turns += [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": str(number)}]
        sample = {"id": f"talk{number}", "image": f"train/class{number % 2}/{number % 4}.png", "conversations": turns}
        if number % 3 == 2:
            del sample["image"]
            turns[0]["value"] = "What color?"
        samples.append(sample)
    path.write_text(json.dumps(samples))
    return path


def write_shards(folder: Path) -> dict[str, str]:
    """One shard of four pictures with classes and captions for each split: split -> path."""
    photos = write_photos(folder / "for_shards")
    paths = {}
    for split in ("train", "val", "test"):
        paths[split] = str(folder / f"{split}-000000.tar")
        with webdataset.TarWriter(paths[split]) as shard:
            for number, file in enumerate(sorted((photos / split).rglob("*.png"))):
                fields = {"png": file.read_bytes(), "cls": str(number % 2), "txt": f"red star {number}"}
                shard.write({"__key__": f"{number:06d}", **fields})
    return paths


def write_clip_shards(folder: Path) -> dict[str, str]:
    """One shard of four short clips for each split: split -> path."""
    from clips import stairs, write_clip

    clip = write_clip(folder / "clip.mp4", stairs(4)).read_bytes()
    paths = {}
    for split in ("train", "val", "test"):
        paths[split] = str(folder / f"clips-{split}-000000.tar")
        with webdataset.TarWriter(paths[split]) as shard:
            for number in range(4):
                shard.write({"__key__": f"{number:06d}", "mp4": clip})
    return paths


def write_ade20k(folder: Path) -> Path:
    """Some pictures with masks in the layout of ADE20K."""
    for split, count in (("training", 12), ("validation", 2)):
        for number in range(count):
            for kind, suffix in (("images", "jpg"), ("annotations", "png")):
                path = folder / kind / split / f"ADE_{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                ramp = np.tile(np.arange(72, dtype=np.uint8), (64, 1))
                Image.fromarray(ramp if kind == "annotations" else np.dstack([ramp * 3] * 3)).save(path)
    return folder


def write_nyu(folder: Path) -> Path:
    """Some pictures with depth in the layout of NYUv2 as BTS has it, at the true size."""
    for split, place, count in (("train", "sync", 12), ("test", "official_splits/test", 2)):
        names = [(f"room/rgb_{number}.jpg", f"room/sync_depth_{number}.png") for number in range(count)]
        (folder / place / "room").mkdir(parents=True)
        (folder / f"nyudepthv2_{split}_files_with_gt.txt").write_text("".join(f"/{i} /{d} 518.9\n" for i, d in names))
        ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (480, 1))
        for image, depth in names:
            Image.fromarray(np.dstack([ramp] * 3)).save(folder / place / image)
            Image.fromarray(ramp.astype(np.uint16) * 30).save(folder / place / depth)
    return folder


def tiny_source(config: dict[str, Any], folder: Path) -> list[str]:
    """Options that point the data module of a resolved configuration at a source made in `folder`."""
    return tiny_vision_language(config, folder) + tiny_images(config, folder)


def tiny_vision_language(config: dict[str, Any], folder: Path) -> list[str]:
    """Options for a recipe with a language model, or a tokenizer, which is made in `folder`; its encoder is random."""
    from tiny_language import write_lm

    arguments = config["model"].get("init_args", {})
    if _class_name(arguments.get("condition")) == "TextCondition":
        return ["--model.condition.name", str(write_lm(folder / "lm"))]
    if arguments.get("tokenizer", "embedded") != "embedded":
        return ["--model.tokenizer", str(write_codes(folder / "codes"))]
    if _class_name(arguments.get("lm")) != "PretrainedLM":
        return []
    # In its own words, not as the recipe spells its name.
    options = ["--model.lm.name", str(write_lm(folder / "lm")), "--model.lm.gguf_file", "null"]
    options += ["--model.lora_targets", "null", "--model.init_projector", "null"]
    if "encoder" in arguments["source"]["init_args"]:
        options += ["--model.source.encoder", "SceneViT", "--model.source.encoder.weights", "null", "--data.size", "32"]
    return options


def tiny_images(config: dict[str, Any], folder: Path) -> list[str]:
    """Options that point the data module at images, shards or conversations made in `folder`."""
    if config["model"].get("init_args", {}).get("unlabelled"):
        return ["--model.unlabelled.root", str(write_photos(folder / "photos"))]
    name = config["data"]["class_path"].rpartition(".")[2]
    if name == "ImageFolder":
        photos = write_photos(folder / "photos")
        if config["data"]["init_args"].get("caption") is not None:
            for photo in [path for path in photos.rglob("*") if path.is_file()]:
                photo.with_suffix(".txt").write_text(f"a picture of {photo.parent.name}")
        return ["--data.root", str(photos), "--data.val", "null", "--data.test", "null"]
    if name == "ClipFolder":  # each class of pictures is a folder of two frames
        options = ["--data.val", "null", "--data.test", "null", "--data.length", "2", "--data.rate", "null"]
        return ["--data.root", str(write_photos(folder / "photos")), *options]
    if name == "ADE20K":
        options = ["--data.root", str(write_ade20k(folder / "ade")), "--data.size", "64", "--data.val_fraction", "0.4"]
        if _class_name(config["model"]["init_args"]["heads"][0]) != "Mask2Former":
            return options
        sizes = "num_classes: 150, width: 32, queries: 4, pixel_blocks: 1, blocks: 1, points: 16"
        return [*options, "--model.heads", f"[{{class_path: Mask2Former, init_args: {{{sizes}}}}}]"]
    if name == "NYUv2":
        options = ["--data.size", "48", "--data.buckets", "[[48, 64]]", "--data.val_fraction", "0.4"]
        return ["--data.root", str(write_nyu(folder / "nyu")), *options]
    if name == "Conversations":
        photos = write_photos(folder / "photos", ("train",))
        return ["--data.train", str(write_conversations(folder / "talk.json")), "--data.images", str(photos)] + [
            word for split in ("val", "test") for word in (f"--data.{split}", str(folder / "talk.json"))
        ]
    if name == "WebDataset":
        paths = write_shards(folder)
        return [word for split, path in paths.items() for word in (f"--data.{split}", path)]
    if name == "ClipShards":
        options = ["--data.length", "2", "--data.rate", "null"]
        return options + [
            word for split, path in write_clip_shards(folder).items() for word in (f"--data.{split}", path)
        ]
    if name == "COCODetection":
        for split in ("train2017", "val2017"):
            write_coco(folder / "coco", [annotation(1), annotation(2, image=2)], name=split)
        sizes = "num_classes: 80, channels: 16, scales: [1], hidden: 16, mask_channels: 8, proposals: 10"
        head = f"[{{class_path: MaskRCNNHead, init_args: {{{sizes}, max_detections: 5}}}}]"
        data = ["--data.root", str(folder / "coco"), "--data.size", "32", "--data.val_fraction", "0.3"]
        return [*data, "--model.heads", head]
    return []
