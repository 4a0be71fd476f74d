"""TextVQA (arXiv 1904.08920): questions about text in images, each with ten people's answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from uniflow.core.json_files import LARGE, read_json_object
from uniflow.language.benchmarks.base import SHORT_ANSWER, Benchmark, Question, image_file, mean, wanted

# Words whose apostrophe people forget; the second list only lacks one of its several.
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's "
    "where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll "
    "you're you've"
)
_SEVERAL_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"
)
_NUMBERS = "zero one two three four five six seven eight nine ten"
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'


def _contractions() -> dict[str, str]:
    table = {}
    for word in f"{_ONE_APOSTROPHE} {_SEVERAL_APOSTROPHES}".split():
        for place in (i for i, letter in enumerate(word) if letter == "'"):
            table[word[:place] + word[place + 1 :]] = word
    return table | {"somebody'd": "somebodyd"}  # the other way round in the official table


_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_CONTRACTIONS = _contractions()


def normalize_answer(text: str) -> str:
    """An answer as EvalAI's TextVQA evaluator compares it: lower case, no articles, digits, most punctuation gone."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = plain = re.sub(r"[\n\t]", " ", text).strip()
    for mark in _PUNCTUATION:
        # Beside a space it vanishes, everywhere; else it parts two words.
        text = text.replace(mark, "" if f"{mark} " in plain or f" {mark}" in plain else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_WORDS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def consensus(answer: str, people: Sequence[str]) -> float:
    """The VQA accuracy (arXiv 1505.00468): min(1, n / 3) of the n others who said the same, the mean of leaving out
    each person once. All texts are normalised.
    """
    same = sum(person == answer for person in people)
    return mean(min(1.0, (same - (person == answer)) / 3) for person in people)


class TextVQA(Benchmark):
    """Score: accuracy. With OCR tokens in the prompt a model need not read, so `settings` say whether they are."""

    name: ClassVar[str] = "textvqa"

    @classmethod
    def read(cls, file: Path, images: Path | None, ocr: Path | None = None) -> TextVQA:
        """The questions of, for example, `TextVQA_0.5.1_val.json`.

        Args:
            file: the questions.
            images: the folder `train_images`, which holds the validation images too.
            ocr: a file such as `TextVQA_Rosetta_OCR_v0.2_val.json`, whose tokens are added to the prompts.
        """
        tokens = None if ocr is None else _read_ocr(ocr)
        questions = []
        for number, record in enumerate(read_json_object(file, LARGE)["data"]):
            where = f"{file}, entry {number}"
            id_, text, name = wanted(record, ("question_id", "question", "image_id"), where)
            people = record.get("answers")
            if not isinstance(people, list) or len(people) < 2:
                raise ValueError(f"{where} needs a list of answers, got {people!r} (the test split has none)")
            prompt = text.capitalize()
            if tokens is not None:
                if name not in tokens:
                    raise ValueError(f"{ocr} has no tokens of image {name}, which {where} asks about")
                prompt += f"\nReference OCR token: {', '.join(tokens[name])}"
            image = image_file(images, f"{name}.jpg", where)
            answers = tuple(str(person) for person in people)
            questions.append(Question(image, prompt + SHORT_ANSWER, answers, "", id_, group=id_))
        return cls(questions, ocr_tokens=tokens is not None)

    def right(self, question: Question, answer: str) -> float:
        return consensus(normalize_answer(answer), [normalize_answer(person) for person in question.answers])

    def scores(self, answers: Sequence[str]) -> dict[str, float]:
        return {"accuracy": mean(self._rights(answers))}


def _read_ocr(file: Path) -> dict[str, list[str]]:
    content = read_json_object(file, LARGE)
    if not isinstance(content.get("data"), list):
        raise ValueError(f"{file} is not a file of OCR tokens: it has no list 'data'")
    tokens = {}
    for number, record in enumerate(content["data"]):
        (name,) = wanted(record, ("image_id",), f"{file}, entry {number}")
        tokens[name] = [str(token) for token in record.get("ocr_tokens", [])]
    return tokens
