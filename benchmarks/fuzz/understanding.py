"""Cases of `understand`, `chat`, `answer`, `put-back` and `sample`, and of the data that tasks are judged on."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.fuzz.cases import BINARY_PIECES, JSON_PIECES, Case, Launched, changed, command
from benchmarks.fuzz.folders import (
    SIZE,
    write_assistant,
    write_coco,
    write_conversations,
    write_generator,
    write_llava,
    write_pairs,
    write_questions,
)
from benchmarks.fuzz.training import EMBEDDED
from uniflow.tools import understand

VALUES = (None, -1, 0, 10**9, 10**30, 1e999, float("nan"), "", "os.system", [], {}, [[1]], "../../etc/passwd", True)
COUNTS = ("-1", "0", "nan", "1e3", "9" * 400, "null", "x")
BREAK: dict[str, Callable[[Path], Any]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "text": lambda file: file.write_text("hello"),
    "a list": lambda file: file.write_text("[]"),
    "null": lambda file: file.write_text("null"),
    "nested": lambda file: file.write_text('{"a":' * 100_000),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a loop": lambda file: (file.unlink(), file.symlink_to(file.name)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
}
MASKS: dict[str, Callable[[Path], Any]] = {
    "another size": lambda file: Image.new("L", (8, 8)).save(file),
    "a label out of range": lambda file: Image.new("L", (40, 36), 77).save(file),
    "coloured": lambda file: Image.new("RGB", (40, 36), "red").save(file),
    "no value": lambda file: Image.fromarray(np.zeros((36, 40), np.uint16)).save(file),
    "far away": lambda file: Image.fromarray(np.full((36, 40), 65535, np.uint16)).save(file),
    "a float": lambda file: Image.fromarray(np.full((36, 40), np.nan, np.float32)).save(file, "TIFF"),
}
SAMPLE = ["sample", "--count", "1", "--out", "made", "--generator"]
CHAT = ["chat", "What color is the star?", "--max_new_tokens", "2", "--image", "good.png", "--assistant"]
ANSWER = ["answer", "--max_new_tokens", "1", "--assistant", "assistant", "--images", "questions/images", "--benchmark"]
SWAP = ["put-back", "--max_new_tokens", "1", "--images", "questions/images", "--benchmark"]
UNDERSTAND = ["understand", "--out", "judged", "--tasks", "[segmentation]", "--tokenizer"]
SPLITS = ["--data.val", "val.json", "--data.test", "test.json", "--data.train", "train.json"]
RECIPES = {
    "masks": ["scenes_segmentation", "--data", "MaskFolder", "--data.num_classes", "13"],
    "depth": ["scenes_depth", "--data", "DepthFolder"],
    "coco": ["scenes_detection", "--data", "COCODetection", "--data.val_fraction", "0.5"],
    "conversations": ["scenes_vqa", "--data", "Conversations", *SPLITS],
}


def fixed() -> Iterator[Case]:
    """Whole inputs, and every kind of damage to each of their files; makes the inputs that `drawn` breaks."""
    understand.launch_local = _launched  # type: ignore[assignment]
    Image.new("RGB", (40, 30), "red").save("good.png")
    Path("copies").mkdir()
    shutil.copytree(EMBEDDED, "embedded_copy")
    write_generator(Path("generator"))
    write_assistant(Path("assistant"))
    write_llava(Path("llava"), Path("student"))
    write_questions(Path("questions"))
    for kind in ("masks", "depth"):
        write_pairs(Path(kind), kind)
    write_coco(Path("coco"))
    write_conversations(Path("conversations"))
    yield from _sample()
    yield from _chat()
    yield from _answer()
    yield from _put_back()
    yield from _understand()
    yield from _data()


def drawn(draw: random.Random, number: int) -> Iterator[Case]:
    """Files with random damage: bytes, and values of JSON."""
    for index in range(14):
        for file in ("config.json", "model.safetensors")[: 2 - index % 2]:
            folder = _damaged("generator", file, draw, f"{number}_{index}")
            yield f"sample {folder}", command([*SAMPLE, str(folder)])
        for file in ("assistant.json", "lm/config.json", "lm/tokenizer.json", "vision/encoder.safetensors"):
            if index % 4 < 2 or file == "assistant.json":
                folder = _damaged("assistant", file, draw, f"{number}_{index}")
                yield f"chat {folder} {file}", command([*CHAT, str(folder)])
        for name in ("pope.json", "gqa.json", "textvqa.json", "mmbench.tsv", "MME/color/0.txt"):
            folder = _damaged("questions", name, draw, f"{number}_{index}")
            yield f"answer {folder / name}", command([*ANSWER, str(folder / name.split("/")[0])])
        if index % 2:
            continue
        for name in ("coco/annotations/instances_train2017.json", "conversations/val.json"):
            kind, file = name.split("/", 1)
            yield f"data {name} {index}", _validate(kind, _damaged(kind, file, draw, f"{number}_{index}"))
        for kind in ("masks", "depth"):
            folder = _damaged(kind, f"{kind}/val/0.png", draw, f"{number}_{index}")
            yield f"data {folder}", _validate(kind, folder)


def _sample() -> Iterator[Case]:
    yield "sample whole", command([*SAMPLE, "generator"], good=True)
    yield from (("sample " + what, command([*SAMPLE, "generator", *words])) for what, words in _numbers(
        ["count", "seed", "steps", "guidance", "batch_size"]))  # fmt: skip
    for classes in ("7", "-1", "x", "1,,2", ",", "9" * 400, "0,1", "é"):
        yield f"sample --classes {classes[:9]}", command([*SAMPLE, "generator", "--classes", classes])
    for words in (["--npz", "a.txt"], ["--npz", "good.png/a.npz"], ["--out", "good.png"], ["--device", "cuda"]):
        yield f"sample {words}", command([*SAMPLE, "generator", *words], bad=True)
    yield from _broken("sample", "generator", ("config.json", "model.safetensors"), SAMPLE)
    yield from _broken("sample", "generator", ("tokenizer/config.json", "tokenizer/model.safetensors"), SAMPLE)
    for what, path, value in (
        ("runs a function", ("network", "class_path"), "os.system"),
        ("a class of another kind", ("network", "class_path"), "uniflow.encoders.SceneViT"),
        ("imports a module", ("condition", "class_path"), "antigravity.Some"),
        ("wide", ("network", "init_args", "width"), 10**9),
        ("deep", ("network", "init_args", "depth"), 10**9),
        ("never ends", ("network", "init_args", "steps"), 10**9),
        ("many classes", ("condition", "init_args", "num_classes"), 10**12),
        ("a large grid", ("grid",), [4096, 4096]),
        ("a larger grid", ("grid",), [10**9, 10**9]),
    ):
        folder = _copy("generator", what, ["config.json"])
        _set(folder / "config.json", path, value)
        yield f"sample {what}", command([*SAMPLE, str(folder)], bad=True)
    folder = _copy("generator", "another tokenizer")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree("student", folder / "tokenizer")
    yield "sample tokenizer of another kind", command([*SAMPLE, str(folder)], bad=True)
    yield "sample a tokenizer", command([*SAMPLE, "student"], bad=True)


def _chat() -> Iterator[Case]:
    yield "chat whole", command([*CHAT, "assistant"], good=True)
    yield "chat without an image", command(["chat", "What?", "--max_new_tokens", "1", "--assistant", "assistant"], True)
    yield "chat with an embedded tokenizer", command([*CHAT, "assistant", "--tokenizer", "embedded"], good=True)
    yield "chat with another tokenizer", command([*CHAT, "assistant", "--tokenizer", "student"], bad=True)
    yield from (("chat " + what, command([*CHAT, "assistant", *words])) for what, words in _numbers(["max_new_tokens"]))
    for words in (
        ["--lm", "nothing/here"], ["--lm", "llava"], ["--lm", "good.png"], ["--lm", ""], ["--gguf_file", "a.gguf"],
        ["--lm", ".", "--gguf_file", "good.png"], ["--lm", ".", "--gguf_file", "none.gguf"], ["--image", "none.png"],
        ["--tokenizer", "nothing/here"], ["--tokenizer", ""], ["--image", "assistant"], ["--image", "."],
        ["--device", "cuda"],
    ):  # fmt: skip
        yield f"chat {words}", command([*CHAT, "assistant", *words], bad=True)
    for text in ("", "<image> <image>", "\ud800", "<unk>" * 2000, "\0", "{}", "{{ bos_token }}", "<image>"):
        yield f"chat {ascii(text)[:20]}", command(["chat", text, *CHAT[2:], "assistant"])
    files = ("assistant.json", "projector.safetensors", "vision/encoder.safetensors")
    yield from _broken("chat", "assistant", files, CHAT)
    yield from _broken("chat", "assistant", ("lm/config.json", "lm/model.safetensors", "lm/tokenizer.json"), CHAT)
    for what, path, value in (
        ("runs a function", ("vision", "encoder", "class_path"), "os.system"),
        ("wide", ("vision", "encoder", "init_args", "embed_dim"), 10**9),
        ("another template", ("template", "class"), "os.system"),
        ("an attribute in its template", ("template", "init_args", "user"), "{0.__class__.__init__.__globals__}"),
        ("a huge image", ("size",), [10**6, 10**6]),
        ("an image of nothing", ("size",), [0, 0]),
        ("a language model somewhere else", ("lm",), {"name": "/dev/zero"}),
        ("no layers", ("vision", "layers"), []),
        ("layers that are not there", ("vision", "layers"), [99]),
        ("merges nothing", ("projector", "merge"), 0),
    ):
        folder = _copy("assistant", what, ["assistant.json"])
        _set(folder / "assistant.json", path, value)
        yield f"chat {what}", command([*CHAT, str(folder)], bad=True)


def _answer() -> Iterator[Case]:
    for name in ("pope.json", "gqa.json", "textvqa.json", "mmbench.tsv", "MME"):
        yield f"answer {name}", command([*ANSWER, f"questions/{name}"], good=True)
        if name != "MME":
            yield from _broken("answer", "questions", (name,), ANSWER, inside=name, may="pope.json half")
    yield from _broken("answer", "questions", ("MME/color/0.txt",), ANSWER, inside="MME", may="MME/color/0.txt missing")
    images = ("images/0.jpg",)
    for name in ("pope.json", "gqa.json", "textvqa.json"):
        for what, folder, file in _each(("questions",), images, ("missing", "empty", "half", "text", "a pipe")):
            words = [*ANSWER[:-3], "--images", f"{folder}/images", "--benchmark", f"{folder}/{name}"]
            yield f"answer {name} {file} {what}", command(words)
    yield from (
        (f"answer {what}", command([*ANSWER, "questions/pope.json", *words]))
        for what, words in _numbers(["limit", "max_new_tokens", "batch_size"])
    )
    for words in (
        ["--model", "llava"], ["--tokenizer", "student"], ["--ocr", "good.png"], ["--images", "nowhere"],
        ["--assistant", "nowhere"], ["--assistant", "generator"], ["--out", "good.png"], ["--device", "cuda"],
    ):  # fmt: skip
        yield f"answer {words}", command([*ANSWER, "questions/pope.json", *words], bad=True)


def _put_back() -> Iterator[Case]:
    words = [*SWAP, "questions/pope.json"]
    yield "put-back whole", command([*words, "--model", "llava", "--tokenizer", "student"], good=True)
    for model, tokenizer in (
        ("llava", "embedded"), ("llava", "generator"), ("llava", "nothing/here"), ("student", "student"),
        ("nothing/here", "student"), ("assistant/lm", "student"), ("good.png", "student"), ("", ""),
    ):  # fmt: skip
        case = command([*words, "--model", model, "--tokenizer", tokenizer], bad=True)
        yield f"put-back {model} {tokenizer}", case
    end = ["--tokenizer", "student", "--model"]
    files = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja")
    yield from _broken("put-back", "llava", files, [*words, *end], may="chat_template.jinja")
    end = ["--model", "llava", "--tokenizer"]
    yield from _broken("put-back", "student", ("config.json", "model.safetensors"), [*words, *end])


def _understand() -> Iterator[Case]:
    yield "understand whole", command([*UNDERSTAND, "embedded"], good=True)
    yield from _broken("understand", "embedded_copy", ("config.json", "model.safetensors"), UNDERSTAND)
    yield from (
        (f"understand {what}", command([*UNDERSTAND, "embedded", *w])) for what, w in _numbers(["jobs", "seed"])
    )
    Path("list.yaml").write_text("[1, 2]")
    for words in (
        ["--tasks", "[nothing]"], ["--tasks", "[]"], ["--tasks", "[1]"], ["--tasks", "[good.png]"],
        ["--tasks", "[vqa, vqa]"], ["--tasks", "[quickstart]"], ["--tasks", "{"], ["--compare", "x"],
        ["--compare", '{"a": "nothing/here"}'], ["--compare", '{"teacher": "embedded"}'], ["--compare", '{"a": 1}'],
        ["--teacher", "nothing.yaml"], ["--teacher", "list.yaml"], ["--teacher", "good.png"],
        ["--teacher", "configs/decoders"], ["--data", "nothing.yaml"], ["--data", "list.yaml"],
        ["--data", "good.png"], ["--budget", "large"], ["--options", '{"run": "x"}'], ["--options", "[1]"],
        ["--options", '{"trainer.max_steps": "many"}'], ["--options", '{"no.such": 1}'], ["--out", "good.png"],
        ["--options", '{"model.optimizer": "os.system"}'],
    ):  # fmt: skip
        yield f"understand {words}", command([*UNDERSTAND, "embedded", *words], bad=words[1] != "[]")


def _data() -> Iterator[Case]:
    for kind in RECIPES:
        yield f"data {kind} whole", _validate(kind, Path(kind), good=True)
    for what, kind in ((what, kind) for what in MASKS for kind in ("masks", "depth")):
        folder = _copy(kind, what, [f"{kind}/val/0.png", f"{kind}/val/1.png"])
        MASKS[what](folder / kind / "val" / "0.png")
        yield f"data {kind} {what}", _validate(kind, folder)
        MASKS[what](folder / kind / "val" / "1.png")
        yield f"data {kind} {what}, all", _validate(kind, folder)
    for kind in ("masks", "depth"):
        kinds = ("missing", "empty", "half", "text", "a folder", "a pipe", "a loop", "a device")
        for what, folder, file in _each((kind,), (f"{kind}/val/0.png", "images/val/0.png"), kinds):
            yield f"data {kind} {file} {what}", _validate(kind, folder)
    files = {"coco": ("annotations/instances_train2017.json",), "conversations": ("val.json",)}
    for kind, names in files.items():
        for what, folder, file in _each((kind,), names, tuple(BREAK)):
            yield f"data {kind} {file} {what}", _validate(kind, folder)
    for what, path, value in (
        ("box of nan", ("annotations", 0, "bbox"), [float("nan")] * 4),
        ("box of three", ("annotations", 0, "bbox"), [1, 2, 3]),
        ("box outside", ("annotations", 0, "bbox"), [900, 900, 5, 5]),
        ("another class", ("annotations", 0, "category_id"), 77),
        ("no images", ("images",), []),
        ("huge image", ("images", 0, "height"), 10**9),
        ("name of a device", ("images", 0, "file_name"), "/dev/zero"),
        ("a class twice", ("categories", 1, "id"), 1),
    ):
        folder = _copy("coco", what, ["annotations/instances_train2017.json"])
        _set(folder / "annotations/instances_train2017.json", path, value)
        yield f"data coco {what}", _validate("coco", folder)


def _validate(kind: str, folder: Path, good: bool = False) -> Callable[[], tuple[str, str]]:
    recipe, *options = RECIPES[kind]
    words = ["validate", "-c", recipe, *options, "--data.size", str(SIZE), "--data.num_workers", "0", "--run", "run"]
    if kind == "conversations":
        for name in ("val", "test", "train"):
            words[words.index(f"{name}.json")] = str(folder / f"{name}.json")
        words += ["--data.images", str(folder / "images"), "--model.lm.width", "16", "--model.lm.depth", "1"]
    else:
        words += ["--data.root", str(folder)]
    return command([*words, "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"], good)


def _broken(
    kind: str, source: str, files: Sequence[str], words: list[str], inside: str = "", may: str = ""
) -> Iterator[Case]:
    """Every kind of damage to each of `files` in a copy of the folder `source`, whose path ends the command."""
    for what, folder, file in _each((source,), files, tuple(BREAK)):
        yield (
            f"{kind} {file} {what}",
            command([*words, str(folder / inside)], bad=not f"{file} {what}".startswith(may or " ")),
        )
    for file in (f for f in files if f.endswith(".safetensors")):
        folder = _copy(source, f"nan in {file}", [file])
        tensors = load_file(folder / file)
        next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
        save_file(tensors, folder / file, metadata={"format": "pt"})
        yield f"{kind} {file} nan", command([*words, str(folder / inside)], bad=True)


def _each(sources: Sequence[str], files: Sequence[str], kinds: Sequence[str]) -> Iterator[tuple[str, Path, str]]:
    for source in sources:
        for file in files:
            for what in (what for what in kinds if what in BREAK):
                folder = _copy(source, f"{file} {what}", [file])
                BREAK[what](folder / file)
                yield what, folder, file


def _numbers(options: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for option in options:
        for value in COUNTS:
            yield f"--{option}={value[:9]}", [f"--{option}={value}"]


def _damaged(source: str, file: str, draw: random.Random, name: str) -> Path:
    """A copy of the folder `source` in which one file is broken: bytes, or in JSON every second time a value."""
    folder = _copy(source, f"{file} {name}", [file])
    path = folder / file
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.6:
        lines = content.decode().splitlines() if source == "questions" and file == "pope.json" else [content.decode()]
        lines[0] = json.dumps(_with_other_value(json.loads(lines[0]), draw))
        path.write_text("\n".join(lines))
    else:
        pieces = BINARY_PIECES if path.suffix in (".safetensors", ".png") else JSON_PIECES
        path.write_bytes(changed(content, draw, pieces, head=3000))
    return folder


def _with_other_value(value: Any, draw: random.Random) -> Any:
    """JSON with one value, anywhere in it, replaced or taken out."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.15:
        del value[key]
    else:
        value[key] = _with_other_value(value[key], draw)
    return value


def _copy(source: str, name: str, changed: Sequence[str] = ()) -> Path:
    """A new folder with the files of `source`: links, but for those that will be `changed`."""
    folder = Path("copies") / f"{len(list(Path('copies').glob('*')))}_{source}_{name}".replace("/", "_").replace(
        " ", "_"
    )
    shutil.copytree(source, folder, copy_function=os.link)
    for file in changed:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        (folder / file).write_bytes(content)
    return folder


def _set(file: Path, path: Sequence[Any], value: Any) -> None:
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))


def _launched(*_: Any) -> None:
    raise Launched
