"""Teacher against student: equal for equal towers, by hand for others; the commands that say so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import FLOW
from tiny_assistants import IMAGE, inputs, multimodal, save_llava

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.encoders import TransformersEncoder
from uniflow.language.benchmarks import read_benchmark
from uniflow.language.benchmarks.models import TransformersModel
from uniflow.language.put_back import put_back
from uniflow.language.put_back_compare import Comparison, compare, divergence
from uniflow.pictures.drawing import save_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA, tokenizers with its tower as encoder and with a changed one, and POPE's questions."""
    root = tmp_path_factory.mktemp("put_back")
    save_llava(root / "llava")
    for name, factor in (("same", 1.0), ("other", -1.0)):
        encoder = TransformersEncoder(str(root / "llava"))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(factor)
        bottleneck = MLPBottleneck(encoder.spec, channels=8)
        Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).save_pretrained(root / name)
    (root / "images").mkdir()
    lines = []
    for number, label in enumerate(["yes", "no", "no", "yes", "no"]):
        image = torch.rand(3, 60, 70, generator=torch.Generator().manual_seed(number))
        save_picture(image, root / "images" / f"{number}.png")
        text = "Is there a dog in the image?" if number % 2 else "Is there a cat?"
        record = {"question_id": number, "image": f"{number}.png", "text": text, "label": label}
        lines.append(json.dumps(record))
    (root / "pope.json").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    return TransformersModel.from_pretrained(str(folder / "llava"))


def student(folder: Path, name: str) -> TransformersEncoder:
    encoder = Tokenizer.from_pretrained(folder / name).encoder
    assert isinstance(encoder, TransformersEncoder)
    return encoder


def test_equal_towers_agree(folder: Path, model: TransformersModel) -> None:
    benchmark = read_benchmark(folder / "pope.json", folder / "images")
    swap = put_back(model.model, student(folder, "same"))
    result = compare(model, swap, benchmark, max_new_tokens=4, batch_size=2)
    assert model.model.model.vision_tower is swap.teacher
    assert result.teacher == result.student
    assert (result.agreement, result.kl) == (1, pytest.approx(0, abs=1e-6))
    assert result.kl_tokens == 4 * 5


def test_other_towers_do_not(folder: Path, model: TransformersModel) -> None:
    benchmark = read_benchmark(folder / "pope.json", folder / "images")
    swap = put_back(model.model, student(folder, "other"))
    result = compare(model, swap, benchmark, max_new_tokens=3)
    swap.restore()
    plain = [model([q.picture()], [q.prompt], 3)[0] for q in benchmark.questions]
    assert result.teacher == plain
    assert result.student != plain
    assert result.kl > 1e-3
    # By hand: the divergence at the first token of the first answer is part of the mean.
    shorter = compare(model, swap, benchmark.first(1), max_new_tokens=1)
    batch = model.ask([benchmark.questions[0].picture()], [benchmark.questions[0].prompt])
    with torch.inference_mode():
        p = model.model(**batch).logits[:, -1].softmax(-1)
        with swap:
            q = model.model(**batch).logits[:, -1].softmax(-1)
    assert shorter.kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)


def test_divergence() -> None:
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(divergence(half, quarter + 3), expected[None])
    assert divergence(half, half + 1).item() == pytest.approx(0, abs=1e-7)


def test_agreement() -> None:
    assert Comparison(["a", "b", "c", "d"], ["a", "b", "c", "x"], 0.0, 1).agreement == 0.75


def test_a_batch_gives_the_answers_of_single_questions(folder: Path, model: TransformersModel) -> None:
    questions = read_benchmark(folder / "pope.json", folder / "images").questions[:2]
    images, prompts = [q.picture() for q in questions], [q.prompt for q in questions]
    assert len(prompts[0]) != len(prompts[1])
    assert model(images, prompts, 4) == [model([i], [p], 4)[0] for i, p in zip(images, prompts, strict=True)]


def test_there_is_one_bos_token_though_template_and_tokenizer_have_one(folder: Path, model: TransformersModel) -> None:
    question = read_benchmark(folder / "pope.json", folder / "images").questions[0]
    batch = model.ask([question.picture()], [question.prompt])
    assert (batch["input_ids"] == 1).sum() == 1
    assert batch["input_ids"][0, 0] == 1


def test_logits_are_those_of_generation(folder: Path, model: TransformersModel) -> None:
    questions = read_benchmark(folder / "pope.json", folder / "images").questions[:2]
    batch = model.ask([q.picture() for q in questions], [q.prompt for q in questions])
    tokens = model.generate(batch, 4)
    logits = model.logits(batch, tokens).clone()
    logits[..., model.model.config.image_token_id] = -torch.inf
    assert torch.equal(logits.argmax(dim=-1), tokens)


@pytest.mark.parametrize("name", ["internvl", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_logits_of_every_family_are_those_of_generation(name: str) -> None:
    """Positions, kinds of tokens and image features of the longer text are those of generation step by step."""
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=None)
    family = TransformersModel(multimodal(name), SimpleNamespace(chat_template="any", tokenizer=tokenizer))
    batch = inputs(family.model)
    tokens = family.generate(batch, 4)
    logits = family.logits(batch, tokens).clone()
    logits[..., IMAGE] = -torch.inf
    assert torch.equal(logits.argmax(dim=-1), tokens)


def test_tokens_count_up_to_the_end_of_an_answer(model: TransformersModel) -> None:
    counted = model.counted(torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8], [2, 2, 5, 0]]))
    assert counted.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]


def test_put_back_command(folder: Path, uniflow: Callable[..., Any], tmp_path: Path) -> None:
    options = ["--model", str(folder / "llava"), "--benchmark", str(folder / "pope.json"), "--images"]
    options += [str(folder / "images"), "--max_new_tokens", "3", "--device", "cpu", "--out", str(tmp_path / "out")]
    result = uniflow("put-back", "--tokenizer", str(folder / "same"), *options)
    assert result.code == 0, result.err
    assert "same answers: 100.0%; KL of next tokens:" in result.out
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert numbers["teacher"] == numbers["student"]
    assert numbers["protocol/settings"] == {"benchmark": "pope", "questions": 5, "max_new_tokens": 3}
    result = uniflow("put-back", "--tokenizer", str(folder / "other"), *options, "--limit", "3", "--batch_size", "2")
    assert result.code == 0, result.err
    assert "same answers: 100.0%" not in result.out
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert lines[0].keys() == {"id", "kind", "prompt", "truth", "teacher", "student", "teacher_right", "student_right"}


def test_answer_command(folder: Path, uniflow: Callable[..., Any], tmp_path: Path) -> None:
    asked = ["--benchmark", str(folder / "pope.json"), "--images", str(folder / "images"), "--max_new_tokens", "3"]
    models = ["--model", str(folder / "llava"), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert uniflow("answer", *asked, *models).code == 0
    plain = (tmp_path / "out" / "answers.jsonl").read_text()
    result = uniflow("answer", *asked, *models, "--tokenizer", str(folder / "other"))
    assert result.code == 0, result.err
    assert "benchmark pope, questions 5, max_new_tokens 3; protocol " in result.out
    assert "yes_ratio" in result.out
    assert (tmp_path / "out" / "answers.jsonl").read_text() != plain
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tokenizer"] == str(folder / "other")


class Parrot:
    """An assistant that always says yes."""

    def answer(self, image: torch.Tensor, question: str, max_new_tokens: int) -> str:
        return "Yes" if image.dtype == torch.uint8 and len(image) == 3 else "No"


def test_an_assistant_answers_a_benchmark(
    folder: Path, uniflow: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniflow.language.benchmarks.models import AssistantModel

    monkeypatch.setattr(AssistantModel, "from_pretrained", classmethod(lambda cls, folder, device: cls(Parrot())))
    asked = ["--benchmark", str(folder / "pope.json"), "--images", str(folder / "images")]
    assert uniflow("answer", *asked, "--assistant", "RUN/assistant", "--out", str(tmp_path / "out")).code == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert (scores["accuracy"], scores["recall"], scores["yes_ratio"]) == (0.4, 1, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "name who answers: either --assistant RUN/assistant or --model NAME_OR_FOLDER"),
        (["--assistant", "a", "--model", "b"], "name who answers"),
        (["--assistant", "a", "--tokenizer", "b"], "an assistant has its own"),
        (["--model", "no/such"], "cannot load the multimodal model 'no/such'"),
        (["--model", "LLAVA", "--tokenizer", "embedded"], "the student's encoder expects"),
        (["--model", "LLAVA", "--limit", "0"], "expected an integer >= 1"),
        (["--model", "LLAVA", "--ocr", "x.json"], "--ocr adds OCR tokens to TextVQA's prompts"),
    ],
)
def test_wrong_options_end_in_one_line(
    options: list[str], text: str, folder: Path, uniflow: Callable[..., Any]
) -> None:
    options = [option.replace("LLAVA", str(folder / "llava")) for option in options]
    asked = ["--benchmark", str(folder / "pope.json"), "--images", str(folder / "images"), "--device", "cpu"]
    result = uniflow("answer", *asked, *options)
    assert text in result.error
    assert result.code == 2


def test_a_model_without_chat_template_is_refused(folder: Path, model: TransformersModel) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(str(folder / "llava"))
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        TransformersModel(model.model, processor)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "llava").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load the multimodal model"):
        TransformersModel.from_pretrained(str(tmp_path))


def damaged(folder: Path, copy: Path) -> str:
    """A copy of the tiny LLaVA that is to be damaged."""
    for file in (folder / "llava").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return str(copy)


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    name = damaged(folder, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[sorted(tensors)[0]].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 values that are NaN or infinite"):
        TransformersModel.from_pretrained(name)


def test_a_folder_with_a_pipe_does_not_hang(folder: Path, tmp_path: Path) -> None:
    name = damaged(folder, tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OSError, match=r"config\.json: a named pipe"):
        TransformersModel.from_pretrained(name)


def test_a_broken_chat_template_is_one_line(folder: Path, model: TransformersModel) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(str(folder / "llava"))
    processor.chat_template = "{% for"
    with pytest.raises(ValueError, match="the model's chat template cannot be used: ") as info:
        TransformersModel(model.model, processor)([Image.new("RGB", (8, 8))], ["What?"], 1)
    assert "\n" not in str(info.value)
