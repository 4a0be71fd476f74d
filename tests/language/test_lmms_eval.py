"""The model that lmms-eval finds by its entry point, and one task of local files with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import with_lmms_eval  # noqa: F401
from PIL import Image
from tiny import FLOW
from tiny_assistants import save_llava

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.encoders import TransformersEncoder
from uniflow.language import lmms_eval as plugin
from uniflow.language.benchmarks.models import AssistantModel
from uniflow.language.lmms_eval import UniflowChat, manifest

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.json
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
UTILS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    save_llava(tmp_path / "llava")
    return tmp_path / "llava"


def save_student(llava: Path, folder: Path, factor: float = 1.0) -> Path:
    encoder = TransformersEncoder(str(llava))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(factor)
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).save_pretrained(folder)
    return folder


def request(image: Image.Image, text: str, **settings: Any) -> SimpleNamespace:
    def to_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    return SimpleNamespace(args=("", to_messages, {"max_new_tokens": 3, **settings}, image, "task", "test"))


def with_images(model: UniflowChat) -> UniflowChat:
    class Split:
        def __getitem__(self, image: Image.Image) -> dict[str, Any]:
            return {"image": image}

    model.task_dict = {"task": {"test": Split()}}
    return model


def test_our_id_is_listed_and_its_class_is_a_chat_class() -> None:
    from lmms_eval.models import get_model, get_model_manifest, list_available_models

    assert plugin.MODEL_ID == "uniflow"
    assert "uniflow" in list_available_models()
    assert get_model_manifest("uniflow") == manifest()
    assert get_model("uniflow") is UniflowChat
    assert UniflowChat.is_simple is False


def test_requests_are_answered_as_by_the_model(llava: Path) -> None:
    model = with_images(UniflowChat(model=str(llava), batch_size=2))
    red, blue = (Image.new("RGB", (60, 70), colour) for colour in ("red", "blue"))
    texts = ["is there a dog ?", "is the cat red ?", "answer"]
    pairs = list(zip([red, blue, red], texts, strict=True))
    answers = model.generate_until([request(image, text) for image, text in pairs])
    assert answers == [model.answerer([image], [text], 3)[0] for image, text in pairs]
    assert len(set(answers)) > 1
    longer = model.generate_until([request(red, texts[0]), request(red, texts[0], max_new_tokens=1)])
    assert len(longer[1].split()) <= 1 < len(longer[0].split())
    word = longer[0].split()[1]
    assert model.generate_until([request(red, texts[0], until=[word])]) == [longer[0].split()[0]]


def test_a_student_is_put_back(llava: Path, tmp_path: Path) -> None:
    picture = request(Image.new("RGB", (60, 70), "red"), "is there a dog ?", max_new_tokens=8)
    plain = with_images(UniflowChat(model=str(llava))).generate_until([picture])
    same = save_student(llava, tmp_path / "same")
    assert with_images(UniflowChat(model=str(llava), tokenizer=str(same))).generate_until([picture]) == plain
    other = save_student(llava, tmp_path / "other", factor=-1.0)
    assert with_images(UniflowChat(model=str(llava), tokenizer=str(other))).generate_until([picture]) != plain


class Echo:
    """An assistant that says what it was asked."""

    def answer(self, image: Any, question: str, max_new_tokens: int) -> str:
        return f"{question} {tuple(image.shape)} {image.dtype} {int(image[0, 0, 0])} {max_new_tokens}"


def test_an_assistant_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AssistantModel, "from_pretrained", classmethod(lambda cls, folder, device: cls(Echo())))
    model = with_images(UniflowChat(pretrained="RUN/assistant"))
    image = Image.new("RGB", (5, 4), (7, 0, 0))
    assert model.generate_until([request(image, "what?")]) == ["what? (3, 4, 5) torch.uint8 7 3"]
    two = request(image, "what?")
    messages = two.args[1]({"image": image})
    two.args = (two.args[0], lambda document: messages + messages, *two.args[2:])
    with pytest.raises(ValueError, match="one question about one image, this one has 2 turns of image, text, image"):
        model.generate_until([two])


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"do_sample": True}, {"num_beams": 3}])
def test_only_greedy_decoding(settings: dict[str, Any], llava: Path) -> None:
    model = with_images(UniflowChat(model=str(llava)))
    with pytest.raises(ValueError, match="decodes greedily"):
        model.generate_until([request(Image.new("RGB", (8, 8)), "a", **settings)])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "give pretrained=RUN/assistant, or model=NAME"),
        ({"pretrained": "a", "model": "b"}, "give pretrained=RUN/assistant, or model=NAME"),
        ({"pretrained": "a", "tokenizer": "b"}, "give pretrained=RUN/assistant, or model=NAME"),
        ({"model": "b", "batch_size": "auto"}, "must be a number of questions, 1 or more, not auto"),
        ({"model": "b", "batch_size": 0}, "must be a number of questions"),
        ({"model": "no/such"}, "cannot load the multimodal model 'no/such'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        UniflowChat(**arguments)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        UniflowChat(model="x")


@pytest.mark.slow  # lmms-eval reads its thousand tasks twice
def test_lmms_eval_runs_a_task_of_local_files(llava: Path, tmp_path: Path) -> None:
    student = save_student(llava, tmp_path / "student")
    task = tmp_path / "task"
    task.mkdir()
    model = UniflowChat(model=str(llava))
    records = []
    for number, colour in enumerate(["red", "blue", "green", "white"]):
        image = Image.new("RGB", (60, 70), colour)
        image.save(task / f"{colour}.png")
        answer = model.answerer([image], ["is there a dog ?"], 4)[0]
        right = answer if number else "another answer"
        records.append({"image": str(task / f"{colour}.png"), "question": "is there a dog ?", "answer": right})
    (task / "questions.json").write_text(json.dumps(records))
    (task / "utils.py").write_text(UTILS)
    (task / "uniflow_local.yaml").write_text(TASK.format(name="uniflow_local", folder=task))
    command = [sys.executable, "-m", "lmms_eval", "--model", "uniflow", "--tasks", "uniflow_local"]
    command += ["--model_args", f"model={llava},tokenizer={student}", "--include_path", str(task)]
    command += ["--batch_size", "2", "--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    scores = json.loads(results.read_text())["results"]["uniflow_local"]
    assert scores["exact_match,none"] == 0.75
