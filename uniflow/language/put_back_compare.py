"""Teacher against student inside one multimodal model: scores, agreement, and how far their predictions are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from uniflow.core.numbers import PositiveInt
from uniflow.language.benchmarks.base import Benchmark
from uniflow.language.benchmarks.models import TransformersModel
from uniflow.language.put_back import PutBack


@dataclass
class Comparison:
    """What teacher and student answered, in the order of the questions.

    Attributes:
        teacher: answers with the model's own tower.
        student: answers with the student in its place.
        kl: mean over the tokens of the teacher's answers of the divergence KL(teacher || student) between the
            predictions of that token, in nats.
        kl_tokens: number of these tokens.
    """

    teacher: list[str]
    student: list[str]
    kl: float
    kl_tokens: int

    @property
    def agreement(self) -> float:
        """The share of questions with the same answer of both."""
        return sum(a == b for a, b in zip(self.teacher, self.student, strict=True)) / len(self.teacher)


def compare(
    model: TransformersModel,
    swap: PutBack,
    benchmark: Benchmark,
    max_new_tokens: PositiveInt = 32,
    batch_size: PositiveInt = 1,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Comparison:
    """Ask everything twice, with the teacher's and with the student's eyes; the teacher's are in at the end.

    Args:
        model: the multimodal model.
        swap: what `put_back` returned for it.
        benchmark: its questions are asked.
        max_new_tokens: most tokens of an answer.
        batch_size: questions at a time.
        progress: wraps the loop, to show how far it is.

    Raises:
        ImageReadError: naming the first image that cannot be read.
    """
    result = Comparison([], [], 0.0, 0)
    total = 0.0
    questions = benchmark.questions
    for start in progress(range(0, len(questions), batch_size)):
        part = questions[start : start + batch_size]
        batch = model.ask([question.picture() for question in part], [question.prompt for question in part])
        swap.restore()
        tokens = model.generate(batch, max_new_tokens)
        result.teacher += model.decode(tokens)
        expected = model.logits(batch, tokens)
        with swap:
            result.student += model.decode(model.generate(batch, max_new_tokens))
            predicted = model.logits(batch, tokens)
        counted = model.counted(tokens)
        total += float((divergence(expected, predicted) * counted).sum().double())
        result.kl_tokens += int(counted.sum())
    result.kl = total / result.kl_tokens
    return result


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) in nats, (...), of two predictions given as logits (..., vocabulary)."""
    p, q = teacher.float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)
