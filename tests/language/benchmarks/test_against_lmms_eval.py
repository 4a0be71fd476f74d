"""Prompts and scores against lmms-eval's own, where it is installed: `pip install uniflow[lmms-eval]`."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import with_lmms_eval  # noqa: F401
from test_question_benchmarks import mmbench, mme, textvqa

from uniflow.language.benchmarks import read_benchmark
from uniflow.language.benchmarks.mmbench import option_of
from uniflow.language.benchmarks.tables import read_table
from uniflow.language.benchmarks.textvqa import normalize_answer

SHORT = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}


def test_normalized_answers() -> None:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    theirs = EvalAIAnswerProcessor()
    words = [word.lower() for pair in theirs.CONTRACTIONS.items() for word in pair]
    words += [*theirs.NUMBER_MAP, "a", "the", "an", "Cat", "3.5", "1,000", "x.y", "U.S.A.", "$5", "50%", "it's"]
    for word in words:
        assert normalize_answer(word) == theirs(word)
    rng = random.Random(0)
    marks = [*theirs.PUNCTUATIONS, ".", "'", " ", "\n", "\t", ":", "'s"]
    for _ in range(3000):
        text = "".join(rng.choice([*words, *marks, *marks, " ", " "]) for _ in range(rng.randint(1, 9)))
        assert normalize_answer(text) == theirs(text), text


@pytest.mark.parametrize("answer", ["Nokia!", "sony", "LG.", "the lg", "none"])
def test_textvqa(answer: str, tmp_path: Path) -> None:
    from lmms_eval.tasks.textvqa import utils

    benchmark = read_benchmark(textvqa(tmp_path), tmp_path / "images")
    document: Any = {
        "question": "what BRAND is this?",
        "question_id": 7,
        "answers": list(benchmark.questions[0].answers),
    }
    assert utils.textvqa_doc_to_text(document, SHORT) == benchmark.questions[0].prompt
    theirs = utils.textvqa_process_results(document, [answer])["exact_match"]
    assert benchmark.scores([answer])["accuracy"] == pytest.approx(theirs)


def test_mme(tmp_path: Path) -> None:
    from lmms_eval.tasks.mme import utils

    benchmark = read_benchmark(mme(tmp_path))
    rng = random.Random(1)
    for _ in range(20):
        answers = [
            rng.choice(["Yes", "No.", "yes, it is", "No, it is not", "I think yes"]) for _ in benchmark.questions
        ]
        results: dict[str, list[Any]] = {"mme_perception_score": [], "mme_cognition_score": []}
        for question, answer in zip(benchmark.questions, answers, strict=True):
            text = question.prompt.removesuffix(SHORT["post_prompt"]) + " Please answer yes or no."
            document = {"question": text, "answer": question.answers[0], "category": question.kind}
            document["question_id"] = question.group
            assert utils.mme_doc_to_text(document, SHORT) == question.prompt
            for key, value in utils.mme_process_results(document, [answer]).items():
                results[key].append(value)
        scores = benchmark.scores(answers)
        assert scores["perception"] == utils.mme_aggregate_results(results["mme_perception_score"])
        assert scores["cognition"] == utils.mme_aggregate_results(results["mme_cognition_score"])


ANSWERS = ["A", "B.", "(C)", "C) blue", "red", "It is green", "The answer is B", "A blue thing", "**C**",
           "The best option is (B).", "nothing", "I choose C because it is so",
           "It must be B, I say",
           "A: red", "C because A is wrong"]  # fmt: skip


def test_mmbench(tmp_path: Path) -> None:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    theirs = MMBench_Evaluator()
    benchmark = read_benchmark(mmbench(tmp_path))
    rows = read_table(tmp_path / "MMBench_DEV_EN.tsv")
    for row, question in zip(rows, benchmark.questions, strict=True):
        listed, _ = theirs.create_options_prompt(row, ["A", "B", "C", "D", "E"])
        asked = f"{row.get('hint', '')} {row['question']} {listed}\n".lstrip()
        assert question.prompt == asked + "\nAnswer with the option's letter from the given choices directly."
    rng = random.Random(2)
    for _ in range(40):
        answers = [rng.choice(ANSWERS) for _ in benchmark.questions]
        results = [
            {"D": float("nan")} | row | {"index": int(row["index"]), "L2-category": "x", "prediction": answer}
            for row, answer in zip(rows, answers, strict=True)
        ]
        assert benchmark.scores(answers)["accuracy"] == theirs.eval_result(results, eval_method="static")[0], answers


def test_letters_of_single_answers() -> None:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    options = {"A": "red", "B": "green", "C": "blue"}
    before = ["", "The answer is ", "It is ", "Answer: ", "I pick ", "red? No, "]
    for start, letter, end in itertools.product(before, "ABC", ["", ".", ")", ":", ", of course", " I think"]):
        answer = f"{start}{letter}{end}"
        theirs = MMBench_Evaluator().can_infer(answer, dict(options)) or extract_mcq_answer(answer, list(options))
        assert option_of(answer, options) == theirs, answer
