"""Official files in small, scores by hand, and everything that can be wrong with such files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uniflow.data.images.reading import ImageReadError
from uniflow.language.benchmarks import GQA, MME, POPE, MMBench, TextVQA, answer_all, read_benchmark
from uniflow.language.benchmarks.mmbench import option_of
from uniflow.language.benchmarks.mme import yes_or_no
from uniflow.language.benchmarks.textvqa import consensus, normalize_answer

SHORT = "\nAnswer the question using a single word or phrase."


def write_image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), colour).save(path)
    return path


def pope(folder: Path, labels: str = "yynn") -> Path:
    lines = []
    for number, label in enumerate(labels, start=1):
        write_image(folder / "images" / f"{number}.png")
        word = {"y": "yes", "n": "no"}[label]
        lines.append({"question_id": number, "image": f"{number}.png", "text": "Is there a dog?", "label": word})
    path = folder / "coco_pope_random.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def gqa(folder: Path) -> Path:
    entries = {}
    for number, (answer, kind) in enumerate([("red", "query"), ("yes", "verify"), ("Label", "query")]):
        write_image(folder / "images" / f"n{number}.jpg")
        entries[f"2{number}"] = {
            "question": "What is it?",
            "imageId": f"n{number}",
            "answer": answer,
            "types": {"structural": kind, "semantic": "label"},
        }
    path = folder / "testdev_balanced_questions.json"
    path.write_text(json.dumps(entries))
    return path


def textvqa(folder: Path) -> Path:
    write_image(folder / "images" / "abc.jpg")
    answers = ["Nokia"] * 2 + ["the nokia"] * 1 + ["sony", "sony", "lg", "lg", "lg", "lg", "lg"]
    record = {"question_id": 7, "question": "what BRAND is this?", "image_id": "abc", "answers": answers}
    path = folder / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "data": [record]}))
    return path


def mme(folder: Path) -> Path:
    root = folder / "MME"
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for name in ("000", "001"):
        write_image(root / "color" / f"{name}.jpg")
        (root / "color" / f"{name}.txt").write_text(lines)
    write_image(root / "artwork" / "images" / "x.png")
    text = root / "artwork" / "questions_answers_YN" / "x.txt"
    text.parent.mkdir()
    text.write_text(lines)
    write_image(root / "code_reasoning" / "0.png")
    (root / "code_reasoning" / "0.txt").write_text(lines)
    return root


def encoded(folder: Path, colour: str = "red") -> str:
    return base64.b64encode(write_image(folder / f"{colour}.png", colour).read_bytes()).decode()


def table(path: Path, columns: str, *rows: tuple[Any, ...]) -> Path:
    lines = [columns.split(), *rows]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def mmbench(folder: Path) -> Path:
    picture = encoded(folder)
    return table(
        folder / "MMBench_DEV_EN.tsv",
        "index question hint A B C D answer category image",
        (3, "Which colour?", "", "red", "green", "blue", "", "A", "attribute", picture),
        (4, "Where?", "Look left.", "here", "there", "", "", "B", "relation", picture),
        (1000003, "Which colour?", "nan", "blue", "red", "green", "", "B", "attribute", 3),
        (2000003, "Which colour?", "", "green", "blue", "red", "", "C", "attribute", 3),
    )


def test_pope(tmp_path: Path) -> None:
    benchmark = read_benchmark(pope(tmp_path), tmp_path / "images")
    assert isinstance(benchmark, POPE)
    assert benchmark.questions[0].prompt == "Is there a dog?" + SHORT
    assert benchmark.questions[0].answers == ("yes",)
    # Right, wrong, right, wrong: one hit, one miss, one false alarm, by the rules of POPE's script.
    answers = ["Yes, there is. No.", "There is not, sir", "no", "A dog"]
    half = dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_ratio"), 0.5)
    assert benchmark.scores(answers) == half | {"accuracy_exact": 0.25}
    scores = benchmark.scores(["yes", "yes", "yes", "No"])
    assert scores == pytest.approx(
        {"accuracy": 0.75, "accuracy_exact": 0.75, "precision": 2 / 3, "recall": 1, "f1": 0.8, "yes_ratio": 0.75}
    )
    nothing = dict.fromkeys(("precision", "recall", "f1", "yes_ratio"), 0.0)
    assert benchmark.scores(["no"] * 4) == {"accuracy": 0.5, "accuracy_exact": 0.5, **nothing}


def test_gqa(tmp_path: Path) -> None:
    benchmark = read_benchmark(gqa(tmp_path), tmp_path / "images")
    assert isinstance(benchmark, GQA)
    assert [question.kind for question in benchmark.questions] == ["query", "verify", "query"]
    scores = benchmark.scores(["Red.", "no", "label"])
    assert scores == pytest.approx(
        {"accuracy": 2 / 3, "accuracy_no_punctuation": 2 / 3, "accuracy/query": 1, "accuracy/verify": 0}
    )
    assert benchmark.scores(["dark red", "yes, it is", "a label"])["accuracy"] == 0


def test_textvqa(tmp_path: Path) -> None:
    file = textvqa(tmp_path)
    benchmark = read_benchmark(file, tmp_path / "images")
    assert isinstance(benchmark, TextVQA)
    assert benchmark.settings == {"benchmark": "textvqa", "questions": 1, "ocr_tokens": False}
    assert benchmark.questions[0].prompt == "What brand is this?" + SHORT
    # Three of ten: without one of them two remain, 2/3; without another person three, 1.
    assert benchmark.scores(["Nokia!"])["accuracy"] == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert benchmark.scores(["Sony"])["accuracy"] == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert benchmark.scores(["LG"])["accuracy"] == 1
    assert benchmark.scores(["none of these"])["accuracy"] == 0


def test_ocr_tokens_are_in_the_prompt_and_in_the_result(tmp_path: Path) -> None:
    file, ocr = textvqa(tmp_path), tmp_path / "ocr.json"
    ocr.write_text(json.dumps({"data": [{"image_id": "abc", "ocr_tokens": ["NOKIA", "E7"]}]}))
    benchmark = read_benchmark(file, tmp_path / "images", ocr)
    assert benchmark.questions[0].prompt == "What brand is this?\nReference OCR token: NOKIA, E7" + SHORT
    assert benchmark.settings["ocr_tokens"] is True
    ocr.write_text(json.dumps({"data": []}))
    with pytest.raises(ValueError, match="no tokens of image abc"):
        read_benchmark(file, tmp_path / "images", ocr)
    with pytest.raises(ValueError, match=r"--ocr adds OCR tokens to TextVQA's prompts, and .* is pope"):
        read_benchmark(pope(tmp_path), tmp_path / "images", ocr)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat's  tail.", "cat 's tail"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a.b.", "ab"),
        ("red-green", "red green"),
        ("red - green-blue", "red greenblue"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("hes", "he's"),
        ("well", "well"),
        ("An\napple?", "apple"),
    ],
)
def test_normalized_answers(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_consensus() -> None:
    assert consensus("a", ["a"] * 10) == 1
    assert consensus("a", ["a"] + ["b"] * 9) == pytest.approx(9 * (1 / 3) / 10)
    assert consensus("c", ["a"] * 10) == 0


def test_mme(tmp_path: Path) -> None:
    benchmark = read_benchmark(mme(tmp_path))
    assert isinstance(benchmark, MME)
    assert benchmark.questions[0].prompt == "Is it red?" + SHORT
    kinds = [question.kind for question in benchmark.questions]
    assert kinds == ["artwork"] * 2 + ["code_reasoning"] * 2 + ["color"] * 4
    # Artwork: both. Code: one of two. Colour: one image both, of the other none.
    answers = ["Yes", "No.", "yes", "yes", "Yes it is", "no", "maybe yes", "yes"]
    scores = benchmark.scores(answers)
    assert scores["score/artwork"] == 200
    assert scores["score/code_reasoning"] == 50
    assert scores["score/color"] == 50 + 50
    assert (scores["perception"], scores["cognition"], scores["score"]) == (300, 50, 350)
    assert (scores["accuracy/color"], scores["accuracy_plus/color"]) == (0.5, 0.5)


@pytest.mark.parametrize("paths", [True, False])
def test_mme_as_a_table(paths: bool, tmp_path: Path) -> None:
    red, blue = encoded(tmp_path), encoded(tmp_path, "blue")
    rows = [
        (0, "a.jpg", "Is it red?", "Yes", "color", red),
        (1, "b.jpg", "Is it red?", "No", "color", blue),
        (2, "a.jpg", "Is it big?", "No", "color", 0),
        (3, "b.jpg", "Is it big?", "No", "color", 1),
    ]
    columns = "index image_path question answer category image"
    if not paths:  # the pictures themselves say what belongs together
        columns, rows = columns.replace("image_path ", ""), [(row[0], *row[2:]) for row in rows]
    benchmark = read_benchmark(table(tmp_path / "MME.tsv", columns, *rows))
    assert isinstance(benchmark, MME)
    assert benchmark.questions[3].picture().getpixel((0, 0)) == (0, 0, 255)
    assert benchmark.scores(["yes", "no", "no", "yes"])["score/color"] == 75 + 50


def test_mmbench(tmp_path: Path) -> None:
    benchmark = read_benchmark(mmbench(tmp_path))
    assert isinstance(benchmark, MMBench)
    first, hinted = benchmark.questions[:2]
    listed = "There are several options:\nA. red\nB. green\nC. blue"
    assert first.prompt == f"Which colour? {listed}\n\nAnswer with the option's letter from the given choices directly."
    assert hinted.prompt.startswith("Look left. Where? There are")
    assert benchmark.questions[2].picture().size == (12, 8)  # the image of another row
    everything = {"accuracy": 1, "accuracy_single": 1, "accuracy/attribute": 1, "accuracy/relation": 1}
    assert benchmark.scores(["A", "B.", "(B)", "red"]) == everything
    # One of three rotations wrong: the question does not count, its first form does.
    scores = benchmark.scores(["A", "B", "A", "C"])
    assert scores == {"accuracy": 0.5, "accuracy_single": 1, "accuracy/attribute": 0, "accuracy/relation": 1}
    assert benchmark.scores(["A"] * 4)["accuracy_single"] == 0.5


OPTIONS = {"A": "a red car", "B": "a dog", "C": "trees"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("C) trees", "C"),
        ("A dog", "A"),  # a short answer: its word is a letter
        ("A picture of a dog", "B"),  # a long one: it may be the article
        ("I see TREES", "C"),
        ("The correct answer is:B, of course", "B"),
        ("**B**", "B"),
        ("Either A or Both", "A"),
        ("The answer is option B because of A, not D.", "B"),
        ("E", "E"),
        ("nothing", None),
        ("", None),
    ],
)
def test_letters(answer: str, letter: str | None) -> None:
    assert option_of(answer, OPTIONS) == letter


def test_a_part_keeps_groups_whole(tmp_path: Path) -> None:
    part = read_benchmark(mme(tmp_path)).first(2)
    assert [question.group for question in part.questions] == ["artwork/x"] * 2 + ["code_reasoning/0"] * 2
    assert part.settings == {"benchmark": "mme", "questions": 4, "limit": 2}
    rotated = read_benchmark(mmbench(tmp_path)).first(1)
    assert [question.id for question in rotated.questions] == ["3", "1000003", "2000003"]


def test_a_model_is_a_callable(tmp_path: Path) -> None:
    benchmark = read_benchmark(pope(tmp_path), tmp_path / "images")
    calls = []

    def model(images: list[Image.Image], prompts: list[str], max_new_tokens: int) -> list[str]:
        calls.append((len(images), images[0].size, prompts[0], max_new_tokens))
        return ["yes"] * len(images)

    assert answer_all(model, benchmark.questions, max_new_tokens=5, batch_size=3) == ["yes"] * 4
    assert calls == [(3, (12, 8), "Is there a dog?" + SHORT, 5), (1, (12, 8), "Is there a dog?" + SHORT, 5)]
    with pytest.raises(ValueError, match="gave 1 answers to 2 questions"):
        answer_all(lambda *_: ["yes"], benchmark.questions, batch_size=2)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    benchmark = read_benchmark(pope(tmp_path), tmp_path / "images")
    (tmp_path / "images" / "2.png").write_bytes(b"not an image")
    with pytest.raises(ImageReadError, match=r"2\.png: not an image"):
        answer_all(lambda images, *_: ["yes"] * len(images), benchmark.questions)


def emptied(folder: Path) -> Path:
    root = mme(folder)
    (root / "color" / "000.txt").write_text("\n")
    return root


def changed(write: Callable[[Path], Path], old: str, new: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = write(folder)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return path

    return build


def mme_changed(name: str, text: str | None) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        root = mme(folder)
        if text is None:
            (root / name).unlink()
        else:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)
        return root

    return build


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda p: p / "none.json", "no such benchmark: .*none.json; give the file of POPE"),
        (changed(pope, '"label": "yes"', '"label": "maybe"'), "line 1: the label must be yes or no, not 'maybe'"),
        (changed(pope, '2, "image": "2', '2, "image": "9'), r"line 2: no image .*9\.png"),
        (changed(pope, '"text": "Is there a dog?", "label": "no"', '"label": "no"'), "line 3 has no 'text'; needed"),
        (changed(pope, '{"question_id": 4', '{"question_id" 4'), "line 4 is not valid JSON"),
        (changed(gqa, '"question"', '"q"'), "question 20 has no 'question'"),
        (changed(gqa, '"imageId"', '"image"'), "is not a benchmark that is known here"),
        (changed(gqa, '"n1"', '"n9"'), r"question 21: no image .*n9\.jpg"),
        (changed(textvqa, '"answers"', '"a"'), "entry 0 needs a list of answers, got None"),
        (changed(textvqa, "{", "["), "is not a benchmark that is known here"),
        (changed(textvqa, '"data"', '"data'), "is not valid JSON"),
        (changed(mmbench, "\tA\tattribute", "\tD\tattribute"), "index 3: no option 'D', only A, B, C"),
        (changed(mmbench, "\tA\tattribute", "\t\tattribute"), "index 3 .*test split has no answers.* has no 'answer'"),
        (changed(mmbench, "attribute\t3", "attribute\t77"), "index 1000003: no image, and no row '77' with one"),
        (changed(mmbench, "attribute\ti", "attribute\t!"), "index 3: its image is not base64"),
        (mme_changed("color/000.txt", "Is it red?\tYes\n"), "two questions an image, color/000 has 1"),
        (mme_changed("color/000.txt", "Is it red? Yes\n"), "000.txt, line 1: question and answer must be parted by a"),
        (mme_changed("color/000.txt", "Red?\tYes\nBlue?\tPerhaps\n"), "color/000/2: the answer must be Yes or No"),
        (mme_changed("color/000.jpg", None), "000.txt: no image 000 in"),
        (mme_changed("mood/0.txt", ""), "mood/0.txt: no image 0 in"),
        (lambda p: mme(p) / "color", "no questions of mme"),
        (emptied, "000.txt: no questions; MME asks two an image"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(build: Callable[[Path], Path], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text) as error:
        read_benchmark(build(tmp_path), tmp_path / "images")
    assert "\n" not in str(error.value)


def test_images_need_a_folder_and_categories_are_mmes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 names the image 1\.png: give the folder with --images"):
        read_benchmark(pope(tmp_path))
    root = mme(tmp_path)
    (root / "color").rename(root / "colour")
    with pytest.raises(ValueError, match="MME has no category 'colour'; it has existence"):
        read_benchmark(root)


# What `parse_pred_ans` of lmms-eval 0.7.3 says.
MME_WORDS = {
    "y": "yes", "N": "no", "Y.": "yes", "n.": "no", "...no": "no", "No, it is": "no", "Yes.": "yes", "x": "other",
    "maybe yes": "other", "y e s": "other", "Not": "no", "": "other", ".": "other", "n o": "other",
}  # fmt: skip


@pytest.mark.parametrize("answer", MME_WORDS)
def test_mme_reads_the_words_that_lmms_eval_reads(answer: str) -> None:
    assert yes_or_no(answer) == MME_WORDS[answer]


def test_pope_by_the_functions_of_lmms_eval(tmp_path: Path) -> None:
    benchmark = read_benchmark(pope(tmp_path, "yynnyn"), tmp_path / "images")
    scores = benchmark.scores(["Yes", "Yes, there is.", "no ", "No, there is not.", "NO", "yes"])
    assert scores["accuracy_exact"] == pytest.approx(1 / 3)  # pope_aggregate_accuracy; the long answers are wrong there
    # By its own script the long ones count, and "NO" is not the word: 4 of 6, yes four times of which three are right.
    assert scores["accuracy"] == pytest.approx(5 / 6)
    assert scores["precision"] == pytest.approx(3 / 4)
    bare = benchmark.scores(["Yes", "No", "No", "No", "No", "Yes"])
    # pope_aggregate_accuracy, _precision, _recall and _f1_score of the same answers
    assert [bare[k] for k in ("accuracy_exact", "accuracy", "precision", "recall")] == pytest.approx(
        [0.5, 0.5, 0.5, 1 / 3]
    )
    assert bare["f1"] == pytest.approx(0.4)


# What `exact_match_hf_evaluate` of lmms-eval 0.7.3 says with ignore_case and ignore_punctuation.
GQA_PAIRS = [
    ("Red.", "red", 1), ("t shirt", "t-shirt", 0), ("tshirt", "t-shirt", 1), ("red!", "red", 1),
    ("red, blue", "red", 0), ("It's red", "its red", 1), ("left", "Left", 1), ("a red", "red", 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "truth", "expected"), GQA_PAIRS)
def test_gqa_by_the_function_of_lmms_eval(tmp_path: Path, answer: str, truth: str, expected: float) -> None:
    write_image(tmp_path / "images" / "n.jpg")
    record = {"question": "What?", "imageId": "n", "answer": truth}
    (tmp_path / "gqa.json").write_text(json.dumps({"1": record}))
    scores = read_benchmark(tmp_path / "gqa.json", tmp_path / "images").scores([answer])
    assert scores["accuracy_no_punctuation"] == expected
    assert scores["accuracy"] == float(answer.rstrip(".").lower() == truth.lower())
