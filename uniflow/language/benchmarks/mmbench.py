"""MMBench (arXiv 2307.06281): multiple choice, each question again with its options rotated; judged without a judge
model, as lmms-eval's `mmbench_en_dev_static`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from uniflow.language.benchmarks.base import Benchmark, Question, mean, mean_by, wanted
from uniflow.language.benchmarks.tables import images_of, read_table

_ROTATION = 1_000_000  # a rotated question has the index of the first one, plus a multiple of this
_LETTERS = "ABCDE"
# What may stand around a letter that is a word of its own, in the order in which they are tried.
_AROUND = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_SAYS = "answer is|answer:|correct option is|best option is|choice is|i choose|i select|i pick"
# Where a letter may stand in a longer text, the surest place first.
_PLACES = (
    r"^([A-E])(?![A-Za-z])",
    r"(?<![A-Za-z])([A-E])$",
    rf"(?i:{_SAYS})\W*(?:the\s|option\s)*\W*([A-E])(?![A-Za-z])",
    r"\(([A-E])\)",
    r"(?<![A-Za-z])([A-E])[.:)]",
    r"(?<![A-Za-z])([A-E])(?![A-Za-z])",
)


def option_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names; None if it names none.

    The first of these that gives exactly one: a letter as a word (in long texts an "A" may be the article), a letter
    with a mark beside it, an option's text in the answer; then the last letter at the surest place. lmms-eval's static
    extraction also takes capitals inside words for letters; this does not.
    """
    words = answer.split()
    alone = [letter for letter in _LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for form in _AROUND:
        marked = [letter for letter in _LETTERS if form.format(letter) in words]
        if len(marked) == 1:
            return marked[0]
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    if len(named) == 1:
        return named[0]
    text = answer.strip().strip(",.!?;:'\"").strip()
    for place in _PLACES:
        if found := [letter for letter in re.findall(place, text) if letter in options]:
            return found[-1]
    return None


class MMBench(Benchmark):
    """Scores: accuracy (a question counts if it is right in all its rotations), that of each category, and
    `accuracy_single`, of the questions as they stand first.
    """

    name: ClassVar[str] = "mmbench_en_dev_static"

    @classmethod
    def read(cls, file: Path) -> MMBench:
        """The questions of, for example, `MMBench_DEV_EN.tsv`; the images are in the table.

        Raises:
            ValueError: naming the row that lacks something, or whose answer is not one of its options.
        """
        rows, questions = read_table(file), []
        for row, image in zip(rows, images_of(rows, file), strict=True):
            index, text = wanted(row, ("index", "question"), f"{file}, a row")
            (answer,) = wanted(row, ("answer",), f"{file}, row with index {index} (the test split has no answers)")
            options = {letter: row[letter] for letter in _LETTERS if letter in row}
            if answer not in options:
                raise ValueError(f"{file}, row with index {index}: no option {answer!r}, only {', '.join(options)}")
            listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
            hint = f"{row['hint']} " if "hint" in row else ""
            # The prompt of lmms-eval, to its empty line.
            prompt = f"{hint}{text} There are several options:\n{listed}\n\n"
            prompt += "Answer with the option's letter from the given choices directly."
            group = str(int(index) % _ROTATION)
            questions.append(Question(image, prompt, (answer,), row.get("category", ""), index, group, options))
        return cls(questions)

    def right(self, question: Question, answer: str) -> float:
        return float(option_of(answer, question.options) == question.answers[0])

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        rights = self._rights(answers)
        groups = mean_by((question.group for question in self.questions), rights)
        hits = {group: float(value == 1) for group, value in groups.items()}
        kinds = {question.group: question.kind for question in self.questions}
        first = [r for question, r in zip(self.questions, rights, strict=True) if int(question.id) < _ROTATION]
        by_kind = mean_by((kinds[group] for group in hits), hits.values())
        result = {"accuracy": mean(hits.values()), "accuracy_single": mean(first)}
        return result | {f"accuracy/{kind}": value for kind, value in by_kind.items() if kind}
