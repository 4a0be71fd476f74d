"""GQA (arXiv 1902.09506): a JSON object, question id -> question, imageId, answer, types."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from uniflow.core.json_files import LARGE, read_json_object
from uniflow.language.benchmarks.base import (
    SHORT_ANSWER,
    Benchmark,
    Question,
    image_file,
    mean,
    mean_by,
    wanted,
)

_NO_MARKS = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    return text.strip().lower().translate(_NO_MARKS)


class GQA(Benchmark):
    """Scores: accuracy (exact match), that of each structural type, and `accuracy_no_punctuation`.

    As in LLaVA's conversion for the official script, the answer is in lower case and without full stop at its end. For
    the last score all punctuation is left out of answer and truth, as in lmms-eval's `exact_match` of this task.
    """

    name: ClassVar[str] = "gqa"

    @classmethod
    def read(cls, file: Path, images: Path | None) -> GQA:
        """The questions of, for example, `testdev_balanced_questions.json`."""
        questions = []
        for id_, record in read_json_object(file, LARGE).items():
            where = f"{file}, question {id_}"
            text, name, answer = wanted(record, ("question", "imageId", "answer"), where)
            types = record.get("types")
            kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
            image = image_file(images, f"{name}.jpg", where)
            questions.append(Question(image, text + SHORT_ANSWER, (answer,), kind, id_, group=id_))
        return cls(questions)

    def right(self, question: Question, answer: str) -> float:
        return float(answer.strip().rstrip(".").lower() == question.answers[0].lower())

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        rights = self._rights(answers)
        kinds = mean_by((question.kind for question in self.questions), rights)
        plain = (
            float(_plain(answer) == _plain(question.answers[0]))
            for question, answer in zip(self.questions, answers, strict=True)
        )
        total = {"accuracy": mean(rights), "accuracy_no_punctuation": mean(plain)}
        return total | {f"accuracy/{kind}": value for kind, value in kinds.items() if kind}
