"""What all benchmarks of visual questions share: a question, a file of them, and a model that answers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image

from uniflow.core.numbers import PositiveInt
from uniflow.data.images.reading import read_image

# A model is any callable: images, their questions, most tokens of an answer -> answers.
Model = Callable[[list[Image.Image], list[str], int], list[str]]

# What LLaVA-1.5 and lmms-eval append to a question.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        image: the image file, or its content.
        prompt: all that the model is asked.
        answers: the right answers; several where people disagree.
        kind: category that the benchmark gives it.
        id: the benchmark's own.
        group: questions with the same are judged together, such as the two of an MME image.
        options: letter -> text, for multiple choice.
    """

    image: Path | bytes
    prompt: str
    answers: tuple[str, ...]
    kind: str
    id: str
    group: str
    options: Mapping[str, str] = field(default_factory=dict)

    def picture(self) -> Image.Image:
        """The image as RGB.

        Raises:
            ImageReadError: naming the file, or the question whose image is broken.
        """
        pixels = read_image(self.image, name=f"image of question {self.id}" if isinstance(self.image, bytes) else None)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


class Benchmark(ABC):
    """The questions of one official file, and the official score of answers to them.

    Args:
        questions: in the order of the file.
        **settings: what else decides the score, for the result.

    Attributes:
        name: the benchmark's.
        headline: the score that stands for all.
        questions: as given.
        settings: with the name and the number of questions.
    """

    name: ClassVar[str]
    headline: ClassVar[str] = "accuracy"

    def __init__(self, questions: Sequence[Question], **settings: Any) -> None:
        self.questions = list(questions)
        self.settings = {"benchmark": self.name, "questions": len(self.questions), **settings}

    @abstractmethod
    def right(self, question: Question, answer: str) -> float:
        """How right one answer is, from 0 to 1."""

    @abstractmethod
    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        """The official scores of one answer a question, in their order."""

    def first(self, count: PositiveInt) -> Self:
        """The benchmark with the first `count` groups of questions only; the settings say so."""
        groups = set(list(dict.fromkeys(question.group for question in self.questions))[:count])
        part = copy.copy(self)
        part.questions = [question for question in self.questions if question.group in groups]
        part.settings = self.settings | {"questions": len(part.questions), "limit": count}
        return part

    def _rights(self, answers: Sequence[str]) -> list[float]:
        pairs = zip(self.questions, answers, strict=True)
        return [self.right(question, answer) for question, answer in pairs]


def answer_all(
    model: Model,
    questions: Sequence[Question],
    max_new_tokens: PositiveInt = 32,
    batch_size: PositiveInt = 1,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[str]:
    """The model's answers to all questions, in their order.

    Args:
        model: see `Model`.
        questions: of a benchmark.
        max_new_tokens: most tokens of an answer.
        batch_size: questions at a time.
        progress: wraps the loop, to show how far it is.

    Raises:
        ImageReadError: naming the first image that cannot be read: a score without it would not be the official one.
        ValueError: if the model does not give one answer a question.
    """
    answers: list[str] = []
    for start in progress(range(0, len(questions), batch_size)):
        batch = questions[start : start + batch_size]
        given = model([q.picture() for q in batch], [q.prompt for q in batch], max_new_tokens)
        if len(given) != len(batch):
            raise ValueError(f"the model gave {len(given)} answers to {len(batch)} questions")
        answers += given
    return answers


def mean(values: Iterable[float]) -> float:
    """The mean; nan of none."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")


def mean_by(keys: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """The mean of the values of each key, sorted by key."""
    table: dict[str, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        table.setdefault(key, []).append(value)
    return {key: mean(table[key]) for key in sorted(table)}


def wanted(record: Any, keys: Sequence[str], where: str) -> list[str]:
    """The values of `keys` in a record of a benchmark's file, as texts.

    Raises:
        ValueError: naming the place and the key that is missing.
    """
    for key in keys:
        if not isinstance(record, Mapping) or record.get(key) is None:
            raise ValueError(f"{where} has no {key!r}; needed are {', '.join(keys)}")
    return [str(record[key]) for key in keys]


def image_file(folder: Path | None, name: str, where: str) -> Path:
    """The path of an image, which must exist.

    Raises:
        ValueError: if no folder was given, or the image is missing in it.
    """
    if folder is None:
        raise ValueError(f"{where} names the image {name}: give the folder with --images")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{where}: no image {path}")
    return path
