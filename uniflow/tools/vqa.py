"""`uniflow answer` and `uniflow put-back`: benchmarks of visual question answering, in their official local files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.progress import track

from uniflow.core.numbers import PositiveInt
from uniflow.language.benchmarks import Benchmark, Model, answer_all, read_benchmark
from uniflow.language.benchmarks.models import AssistantModel, DType, TransformersModel
from uniflow.language.put_back import PutBack, check_normalization, put_back
from uniflow.language.put_back_compare import compare
from uniflow.metrics import fingerprint
from uniflow.tokenizer import Tokenizer
from uniflow.tools.common import pick_device, print_rows


def answer(
    *,
    benchmark: Path,
    assistant: str | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    images: Path | None = None,
    ocr: Path | None = None,
    limit: PositiveInt | None = None,
    max_new_tokens: PositiveInt = 32,
    batch_size: PositiveInt = 1,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: DType = "auto",
) -> None:
    """Let a model answer POPE, GQA, TextVQA, MME or MMBench, and give the official score.

    Args:
        benchmark: the official file, or MME's folder; its form says which benchmark it is.
        assistant: folder of an assistant of this package, RUN/assistant.
        model: instead, a multimodal model of transformers: hub id or folder.
        tokenizer: with `model`, a tokenizer whose encoder takes the place of the model's vision tower.
        images: folder of the images, where they are not in the file.
        ocr: file of OCR tokens to add to TextVQA's prompts; the result says so.
        limit: ask the first questions only; those that are judged together count as one.
        max_new_tokens: most tokens of an answer.
        batch_size: questions at a time.
        out: folder for `results.json` and `answers.jsonl`; none by default.
        device: where to compute; auto takes a GPU if there is one.
        dtype: of a transformers model's weights; auto is that of its file.

    Raises:
        ValueError: if not exactly one of assistant and model is named, or something cannot be read.
    """
    if (assistant is None) == (model is None):
        raise ValueError("name who answers: either --assistant RUN/assistant or --model NAME_OR_FOLDER")
    if tokenizer is not None and model is None:
        raise ValueError("--tokenizer takes the place of a --model's vision tower; an assistant has its own")
    questions = _questions(benchmark, images, ocr, limit)
    picked = pick_device(device)
    answering: Model
    if model is None:
        answering = AssistantModel.from_pretrained(str(assistant), picked)
    else:
        answering = TransformersModel.from_pretrained(model, picked, dtype)
        if tokenizer is not None:
            _swap(answering, tokenizer)
    answers = answer_all(answering, questions.questions, max_new_tokens, batch_size, _progress("questions"))
    scores = questions.scores(answers)
    settings = questions.settings | {"max_new_tokens": max_new_tokens}
    print_rows([{"metric": name, "value": float(value)} for name, value in scores.items()], questions.name)
    print(_described(settings))
    who = {"assistant": assistant, "model": model, "tokenizer": tokenizer}
    _write(out, {"scores": scores, **who}, settings, questions, {"answer": answers})


def put_back_tool(
    *,
    tokenizer: str,
    model: str,
    benchmark: Path,
    images: Path | None = None,
    ocr: Path | None = None,
    limit: PositiveInt | None = None,
    max_new_tokens: PositiveInt = 32,
    batch_size: PositiveInt = 1,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: DType = "auto",
) -> None:
    """Put a student in the place of the vision tower that it came from, untrained, and compare it with the teacher.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, or a hub id; its encoder is the student.
        model: the multimodal model that the student's teacher is the tower of: hub id or folder.
        benchmark: official file of POPE, GQA, TextVQA or MMBench, or MME's folder.
        images: folder of the images, where they are not in the file.
        ocr: file of OCR tokens to add to TextVQA's prompts; the result says so.
        limit: ask the first questions only; those that are judged together count as one.
        max_new_tokens: most tokens of an answer.
        batch_size: questions at a time.
        out: folder for `results.json` and `answers.jsonl`; none by default.
        device: where to compute; auto takes a GPU if there is one.
        dtype: of the model's weights; auto is that of its file.

    Raises:
        ValueError: if the student does not have the tower's architecture, or something cannot be read.
    """
    questions = _questions(benchmark, images, ocr, limit)
    answering = TransformersModel.from_pretrained(model, pick_device(device), dtype)
    swap = _swap(answering, tokenizer)
    result = compare(answering, swap, questions, max_new_tokens, batch_size, _progress("questions"))
    both = {"teacher": questions.scores(result.teacher), "student": questions.scores(result.student)}
    settings = questions.settings | {"max_new_tokens": max_new_tokens}
    rows = [
        {"metric": name, "teacher": float(value), "student": float(both["student"][name])}
        for name, value in both["teacher"].items()
    ]
    print_rows(rows, questions.name)
    print(f"same answers: {result.agreement:.1%}; KL of next tokens: {result.kl:.4g} nats ({result.kl_tokens} tokens)")
    print(_described(settings))
    numbers = {**both, "agreement": result.agreement, "kl": result.kl, "kl_tokens": result.kl_tokens}
    answers = {"teacher": result.teacher, "student": result.student}
    _write(out, {**numbers, "model": model, "tokenizer": tokenizer}, settings, questions, answers)


def _questions(benchmark: Path, images: Path | None, ocr: Path | None, limit: int | None) -> Benchmark:
    questions = read_benchmark(benchmark, images, ocr)
    return questions if limit is None else questions.first(limit)


def _swap(answering: TransformersModel, tokenizer: str) -> PutBack:
    encoder = Tokenizer.from_pretrained(tokenizer).encoder
    check_normalization(answering.processor, encoder.spec)
    return put_back(answering.model, encoder)


def _progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    return lambda steps: track(list(steps), description=what, transient=True)


def _described(settings: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{listed}; protocol {fingerprint(settings)}"


def _write(
    out: Path | None,
    numbers: dict[str, Any],
    settings: dict[str, Any],
    benchmark: Benchmark,
    answers: Mapping[str, Sequence[str]],
) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    results = {**numbers, "protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, question in enumerate(benchmark.questions):
            given = {name: texts[number] for name, texts in answers.items()}
            right = {f"{name}_right": benchmark.right(question, text) for name, text in given.items()}
            record = {"id": question.id, "kind": question.kind, "prompt": question.prompt, "truth": question.answers}
            file.write(json.dumps(record | given | right, ensure_ascii=False) + "\n")
