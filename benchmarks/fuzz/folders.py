"""Whole inputs of the commands for understanding and generation, tiny, to be broken: models and data sets."""

from __future__ import annotations

import base64
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.conditions import LabelCondition
from uniflow.encoders import TransformersEncoder
from uniflow.features import EncoderSource
from uniflow.generators import DiT, Generator
from uniflow.language import Answerer, Projector, Prompts, ScratchLM, TextTemplate
from uniflow.language.assistant import save_assistant

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from tiny import FLOW
from tiny_assistants import save_llava

SIZE = 32


def write_generator(folder: Path, tokenizer: str = "embedded") -> None:
    """A generator with random weights."""
    torch.manual_seed(0)
    model, condition = Tokenizer.from_pretrained(tokenizer), LabelCondition(3, width=8)
    network = DiT(model.bottleneck.spec, condition.spec, width=16, depth=1, num_heads=2, steps=1)
    Generator(model, network, condition, (2, 2)).save_pretrained(folder)


def write_assistant(folder: Path) -> None:
    """An assistant over the embedded encoder, whose language model is in its folder."""
    encoder = Tokenizer.from_pretrained("embedded").encoder
    source, lm = EncoderSource(lambda: encoder, "last"), ScratchLM(16, 1, 2)
    model, words = lm.load()
    prompts = Prompts(words, TextTemplate("", "{}", " {}{eos}"))
    answerer = Answerer(model, prompts, Projector(source.spec, 16, 2), "full")
    save_assistant(folder, source, answerer, lm, (SIZE, SIZE), {})


def write_llava(model: Path, tokenizer: Path) -> None:
    """A tiny LLaVA, and a tokenizer whose encoder is its tower."""
    save_llava(model)
    encoder = TransformersEncoder(str(model))
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).save_pretrained(tokenizer)


def write_questions(folder: Path) -> dict[str, Path]:
    """Two questions of each benchmark, and their images: name -> file."""
    (folder / "images").mkdir(parents=True)
    (folder / "MME" / "color").mkdir(parents=True)
    for number in range(2):
        for path in (folder / f"images/{number}.jpg", folder / f"MME/color/{number}.jpg"):
            Image.new("RGB", (40, 30), (200, 90 * number, 10)).save(path)
        lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        (folder / f"MME/color/{number}.txt").write_text(lines)
    texts = [
        {"question_id": number, "image": f"{number}.jpg", "text": "Is there a dog?", "label": label}
        for number, label in enumerate(("yes", "no"))
    ]
    (folder / "pope.json").write_text("".join(json.dumps(record) + "\n" for record in texts))
    gqa = {
        f"2{number}": {"question": "What?", "imageId": str(number), "answer": "red", "types": {"structural": "query"}}
        for number in range(2)
    }
    (folder / "gqa.json").write_text(json.dumps(gqa))
    data = [
        {"question_id": number, "question": "what?", "image_id": str(number), "answers": ["red"] * 9 + ["blue"]}
        for number in range(2)
    ]
    (folder / "textvqa.json").write_text(json.dumps({"data": data}))
    picture = base64.b64encode((folder / "images/0.jpg").read_bytes()).decode()
    with (folder / "mmbench.tsv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["index", "question", "A", "B", "answer", "category", "image"])
        rows.writerow(["0", "What?", "red", "blue", "A", "color", picture])
        rows.writerow(["1000000", "What?", "blue", "red", "B", "color", "0"])
    names = {"pope": "pope.json", "gqa": "gqa.json", "textvqa": "textvqa.json", "mmbench": "mmbench.tsv", "mme": "MME"}
    return {name: folder / file for name, file in names.items()}


def write_pairs(folder: Path, kind: str) -> None:
    """Images with masks (`kind` "masks") or depth maps in millimetres ("depth"), two in each split."""
    for split in ("train", "val", "test"):
        for room in ("images", kind):
            (folder / room / split).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 36), (number * 100, 50, 50)).save(folder / f"images/{split}/{number}.png")
            values = np.full((36, 40), 1 + number, np.uint8) if kind == "masks" else np.full((36, 40), 1500, np.uint16)
            Image.fromarray(values).save(folder / kind / split / f"{number}.png")


def write_coco(folder: Path) -> None:
    """Images with boxes in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (folder / name).mkdir()
        content: dict[str, Any] = {"categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]}
        content["images"], content["annotations"] = [], []
        for number in range(1, 5):
            Image.new("RGB", (40, 36), (number * 50, 50, 50)).save(folder / name / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{number}.png", "height": 36, "width": 40})
            polygon = [4, 5, 24, 5, 24, 20, 4, 20]
            box = {"id": number, "image_id": number, "category_id": 13, "bbox": [4, 5, 20, 15], "iscrowd": 0}
            content["annotations"].append(box | {"area": 300, "segmentation": [polygon]})
        (folder / f"annotations/instances_{name}.json").write_text(json.dumps(content))


def write_conversations(folder: Path) -> None:
    """Conversations in LLaVA's format, with their images."""
    (folder / "images").mkdir(parents=True)
    samples = []
    for number in range(6):
        Image.new("RGB", (40, 36), (number * 40, 50, 50)).save(folder / f"images/{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat color is the star?"}, {"from": "gpt", "value": "red"}]
        samples.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    for split in ("train", "val", "test"):
        (folder / f"{split}.json").write_text(json.dumps(samples))
