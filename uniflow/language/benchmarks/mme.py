"""MME (arXiv 2306.13394): two questions an image, answered yes and no; as folders or as one table."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from uniflow.core.files import read_text
from uniflow.data.images.reading import EXTENSIONS
from uniflow.language.benchmarks.base import SHORT_ANSWER, Benchmark, Question, mean_by, wanted
from uniflow.language.benchmarks.tables import images_of, read_table

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ASKED = " Please answer yes or no."


def yes_or_no(answer: str) -> str:
    """The word that MME's own script reads in an answer's first four characters, full stops left out: yes, no or other.

    A single y or n is that word, too.
    """
    start = answer.lower().strip().replace(".", "")[:4]
    return {"y": "yes", "n": "no"}.get(start) or next((word for word in ("yes", "no") if word in start), "other")


class MME(Benchmark):
    """Scores: for each category the sum of the share of right answers and of images with both right, in percent; the
    sums of these over perception and over cognition, and `score`, the sum of both.
    """

    name: ClassVar[str] = "mme"
    headline: ClassVar[str] = "score"

    @classmethod
    def read(cls, path: Path) -> MME:
        """The questions of the folder `MME_Benchmark_release_version`, or of `MME.tsv`.

        A category's folder holds images and, beside them, a text file of each one's name, with lines "question, tab,
        answer"; or both in two folders, `images` and `questions_answers_YN`.

        Raises:
            ValueError: naming the place of the first thing that is wrong, an image without two questions included.
        """
        questions = list(_from_folders(path) if path.is_dir() else _from_table(path))
        for question in questions:
            if question.answers[0] not in ("yes", "no"):
                raise ValueError(f"{path}, {question.id}: the answer must be Yes or No, not {question.answers[0]!r}")
            if question.kind not in PERCEPTION + COGNITION:
                known = ", ".join(PERCEPTION + COGNITION)
                raise ValueError(f"{path}: MME has no category {question.kind!r}; it has {known}")
        for group, count in Counter(question.group for question in questions).items():
            if count != 2:
                raise ValueError(f"{path}: MME asks two questions an image, {group} has {count}")
        return cls(questions)

    def right(self, question: Question, answer: str) -> float:
        return float(yes_or_no(answer) == question.answers[0])

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        rights = self._rights(answers)
        accuracy = mean_by((question.kind for question in self.questions), rights)
        groups = mean_by((f"{question.kind}\0{question.group}" for question in self.questions), rights)
        both = mean_by((key.partition("\0")[0] for key in groups), (float(value == 1) for value in groups.values()))
        scores = {kind: 100 * (accuracy[kind] + both[kind]) for kind in accuracy}
        perception = sum(scores.get(kind, 0.0) for kind in PERCEPTION)
        cognition = sum(scores.get(kind, 0.0) for kind in COGNITION)
        result = {"score": perception + cognition, "perception": perception, "cognition": cognition}
        result |= {f"score/{kind}": scores[kind] for kind in (*PERCEPTION, *COGNITION) if kind in scores}
        return result | {f"accuracy/{k}": accuracy[k] for k in accuracy} | {f"accuracy_plus/{k}": both[k] for k in both}


def _question(image: Path | bytes, text: str, answer: str, kind: str, id_: str, group: str) -> Question:
    # As LLaVA and lmms-eval ask: the request at the end of MME's questions is replaced.
    prompt = text.strip().replace(_ASKED, "") + SHORT_ANSWER
    return Question(image, prompt, (answer.strip().lower().replace(".", ""),), kind, id_, group)


def _from_folders(root: Path) -> Iterator[Question]:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    for folder in folders:
        apart = (folder / "questions_answers_YN").is_dir()
        images = folder / "images" if apart else folder
        files = sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt"))
        for file in files:
            candidates = (images / f"{file.stem}{end}" for end in sorted(EXTENSIONS))
            image = next(filter(Path.is_file, candidates), None)
            if image is None:
                raise ValueError(f"{file}: no image {file.stem} in {images}")
            lines = list(filter(str.strip, read_text(file).splitlines()))
            if not lines:
                raise ValueError(f"{file}: no questions; MME asks two an image")
            for number, line in enumerate(lines, start=1):
                text, tab, answer = line.partition("\t")
                if not tab:
                    raise ValueError(f"{file}, line {number}: question and answer must be parted by a tab")
                group = f"{folder.name}/{file.stem}"
                yield _question(image, text, answer, folder.name, f"{group}/{number}", group)


def _from_table(file: Path) -> Iterator[Question]:
    rows = read_table(file)
    for row, image in zip(rows, images_of(rows, file), strict=True):
        index, text, answer, kind = wanted(row, ("index", "question", "answer", "category"), f"{file}, a row")
        # Without a path, the picture itself says which two questions belong together.
        group = f"{kind}/{row.get('image_path') or hashlib.sha256(image).hexdigest()}"
        yield _question(image, text, answer, kind, index, group)
