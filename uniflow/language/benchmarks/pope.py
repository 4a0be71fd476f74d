"""POPE (arXiv 2305.10355): is an object in the image? One JSON object a line: question_id, image, text, label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from uniflow.core.files import read_text
from uniflow.core.json_files import parse_json
from uniflow.language.benchmarks.base import SHORT_ANSWER, Benchmark, Question, image_file, mean, wanted


def yes_or_no(answer: str) -> str:
    """The word that POPE's own script reads: "no" if the first sentence holds the word no or not, else "yes"."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


class POPE(Benchmark):
    """Scores: accuracy, and precision, recall and F1 of the answer yes; `yes_ratio`, the share of yes among answers;
    `accuracy_exact`, of the bare words yes and no alone.

    The last is lmms-eval's `pope_accuracy`; its `pope_yes_ratio` is that of the labels.
    """

    name: ClassVar[str] = "pope"

    @classmethod
    def read(cls, file: Path, images: Path | None) -> POPE:
        """The questions of, for example, `coco_pope_adversarial.json`; the images are COCO's val2014."""
        questions = []
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            where = f"{file}, line {number}"
            if not line.strip():
                continue
            record = parse_json(line, where)
            id_, name, text, label = wanted(record, ("question_id", "image", "text", "label"), where)
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: the label must be yes or no, not {label!r}")
            image = image_file(images, name, where)
            kind = str(record.get("category", file.stem))
            questions.append(Question(image, text.strip() + SHORT_ANSWER, (label,), kind, id_, group=id_))
        return cls(questions)

    def right(self, question: Question, answer: str) -> float:
        return float(yes_or_no(answer) == question.answers[0])

    def _exact(self, answers: Sequence[str]) -> Iterator[float]:
        for question, answer in zip(self.questions, answers, strict=True):
            yield float(answer.lower().strip() == question.answers[0])

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        labels = [question.answers[0] == "yes" for question in self.questions]
        given = [yes_or_no(answer) == "yes" for answer in answers]
        hits = sum(a and b for a, b in zip(labels, given, strict=True))
        precision = hits / sum(given) if any(given) else 0.0
        recall = hits / sum(labels) if any(labels) else 0.0
        return {
            "accuracy": mean(self._rights(answers)),
            "accuracy_exact": mean(self._exact(answers)),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
            "yes_ratio": mean(given),
        }
