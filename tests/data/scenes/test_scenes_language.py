"""Captions and questions say what is in the scene, and the answers are balanced."""

from collections import Counter

import numpy as np
import pytest

from uniflow.data.scenes import ANSWERS, CLASS_NAMES, COLOR_NAMES, QUESTION_KINDS, Question, Scene, sample_scene
from uniflow.data.scenes.language import caption, name, questions

Asked = list[tuple[Scene, Question]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    scenes = [sample_scene(1, i) for i in range(1500)]
    return [(s, q) for i, s in enumerate(scenes) for q in questions(s, np.random.default_rng(i))]


def answers(asked: Asked, kind: str) -> Counter[str]:
    return Counter(q.answer for _, q in asked if q.kind == kind)


def find(scene: Scene, words: str) -> int:
    return [name(o) for o in scene.objects].index(words)


def test_caption_names_every_object_once() -> None:
    for i in range(100):
        scene = sample_scene(0, i)
        words = caption(scene, np.random.default_rng(i))
        assert all(words.count(name(o)) == 1 for o in scene.objects)
        assert caption(scene, np.random.default_rng(i)) == words


def test_answers_are_in_the_vocabulary(asked: Asked) -> None:
    assert len(set(ANSWERS)) == len(ANSWERS)
    assert {q.answer for _, q in asked} <= set(ANSWERS)
    assert {q.kind for _, q in asked} == set(QUESTION_KINDS)


@pytest.mark.parametrize("kind", ["relation", "existence"])
def test_yes_and_no_are_equally_likely(asked: Asked, kind: str) -> None:
    found = answers(asked, kind)
    assert set(found) == {"yes", "no"}
    assert abs(found["yes"] / found.total() - 0.5) < 0.05


@pytest.mark.parametrize(("kind", "vocabulary"), [("color", COLOR_NAMES), ("shape", CLASS_NAMES)])
def test_colors_and_shapes_are_about_uniform(asked: Asked, kind: str, vocabulary: tuple[str, ...]) -> None:
    found = answers(asked, kind)
    assert set(found) == set(vocabulary)
    assert max(found.values()) < 2 * found.total() / len(vocabulary)


def test_no_count_dominates(asked: Asked) -> None:
    found = answers(asked, "count")
    assert max(found.values()) / found.total() < 0.35


def test_existence_and_relations_hold(asked: Asked) -> None:
    for scene, q in asked:
        words = q.question.rstrip("?").split()
        if q.kind == "existence":
            assert (" ".join(words[-2:]) in [name(o) for o in scene.objects]) == (q.answer == "yes")
        elif q.kind == "relation":
            a, b = (scene.objects[find(scene, " ".join(w))] for w in (words[2:4], words[-2:]))
            relation = " ".join(words[4:-3])
            holds = {
                "left of": a.x < b.x,
                "right of": a.x > b.x,
                "above": a.y < b.y,
                "below": a.y > b.y,
                "in front of": a.depth < b.depth,
                "behind": a.depth > b.depth,
            }[relation]
            assert holds == (q.answer == "yes")


def test_counts_hold(asked: Asked) -> None:
    for scene, q in asked:
        if q.kind != "count":
            continue
        if q.question == "How many objects are there?":
            assert int(q.answer) == len(scene.objects)
        else:
            words = q.question.rstrip("?").split()
            of = scene.objects[find(scene, " ".join(words[-2:]))]
            sign = -1 if words[4] == "left" else 1
            assert words[4] in ("left", "right")
            assert int(q.answer) == sum(sign * (o.x - of.x) > 0 for o in scene.objects)
