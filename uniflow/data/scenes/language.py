"""Text about a scene: a caption, and questions with balanced answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uniflow.data.scenes.scene import BACKGROUNDS, COLOR_NAMES, MAX_OBJECTS, Scene, SceneObject
from uniflow.data.scenes.shapes import CLASS_NAMES
from uniflow.data.scenes.textures import TEXTURES

ANSWERS: tuple[str, ...] = ("yes", "no", *(str(n) for n in range(MAX_OBJECTS + 1)), *COLOR_NAMES, *CLASS_NAMES)
QUESTION_KINDS: tuple[str, ...] = ("count", "color", "shape", "relation", "existence")
_TEXTURE_WORDS = {
    "plain": "",
    "stripes": "striped",
    "checks": "checkered",
    "dots": "dotted",
    "gradient": "shaded",
    "noise": "rough",
}
_BACKGROUND_WORDS = {
    "plain": "a plain wall",
    "gradient": "a wall with a gradient",
    "stripes": "a striped wall",
    "checks": "a checkered wall",
    "dots": "a dotted wall",
    "noise": "a rough wall",
    "ground": "a plain under the sky",
}
_RELATIONS = {"left of": "right of", "above": "below", "in front of": "behind"}
# Two objects are only compared if the answer is clear: in short image sides, and as a ratio of depths.
_CLEAR_OFFSET = 0.12
_CLEAR_DEPTH_RATIO = 1.15
_PLACES = ("on the left", "in the middle", "on the right")
_MIDDLE = (0.44, 0.56)  # of the image's width; about as many main objects on each side as between
_DIRECTIONS = ("to its left", "to its right", "above it", "below it")


class Question(NamedTuple):
    """A question about an image; `kind` is one of `QUESTION_KINDS`, `answer` one of `ANSWERS`."""

    kind: str
    question: str
    answer: str


def name(o: SceneObject) -> str:
    """Colour and shape; no two objects of a scene have both in common."""
    return f"{COLOR_NAMES[o.color]} {CLASS_NAMES[o.shape]}"


def caption(scene: Scene, rng: np.random.Generator, positions: bool = False) -> str:
    """One sentence: the main object with its texture, the others, and the background.

    Args:
        scene: what it is about.
        rng: chooses among sentences that say the same.
        positions: whether it says where the main object is in the image, and the others beside it.
    """
    main, *others = scene.objects
    texture = _TEXTURE_WORDS[main.texture]
    words = _with_article(" ".join(w for w in ("large", texture, name(main)) if w))
    where = _BACKGROUND_WORDS[scene.background]
    if positions:
        placed = f"{words} {_PLACES[_place(scene)]}"
        if others:
            besides = [f"{_with_article(name(o))} {_DIRECTIONS[_direction(main, o)]}" for o in others]
            placed = f"{placed}, with {_enumerate(besides)}"
        return (f"{placed}, on {where}", f"on {where}, {placed}")[int(rng.integers(2))]
    if not others:
        return (f"{words} on {where}", f"{words}, alone on {where}")[int(rng.integers(2))]
    rest = _enumerate([_with_article(name(o)) for o in others])
    templates = (
        f"{words} in front of {rest} on {where}",
        f"{words} with {rest} behind it on {where}",
        f"{words} and, farther away, {rest} on {where}",
    )
    return templates[int(rng.integers(len(templates)))]


def facts(scene: Scene, positions: bool = False) -> dict[str, int]:
    """What `caption` says: the main object's shape, color and texture, the background, and the number of objects.

    Each is a number from 0: of `CLASS_NAMES`, `COLOR_NAMES`, `TEXTURES` and `BACKGROUNDS`; "count" is one less than it.

    Args:
        scene: what the caption is about.
        positions: whether the caption says positions, too. "position" is then 0 for left, 1 for the middle, 2 for
            right; "relation", of the second object to the main one, 0 for left, 1 for right, 2 for above, 3 for below,
            and -1 where there is no second one.
    """
    main = scene.objects[0]
    placed = {"position": _place(scene), "relation": -1} if positions else {}
    if positions and len(scene.objects) > 1:
        placed["relation"] = _direction(main, scene.objects[1])
    return {
        "shape": main.shape,
        "color": main.color,
        "texture": TEXTURES.index(main.texture),
        "background": BACKGROUNDS.index(scene.background),
        "count": len(scene.objects) - 1,
        **placed,
    }


def _place(scene: Scene) -> int:
    """The index in `_PLACES` of the main object."""
    x = scene.objects[0].x / scene.extent[1]
    return sum(x > edge for edge in _MIDDLE)


def _direction(main: SceneObject, other: SceneObject) -> int:
    """The index in `_DIRECTIONS` of another object, by the larger one of the two offsets of the centres."""
    dx, dy = other.x - main.x, other.y - main.y
    return int(dx > 0) if abs(dx) > abs(dy) else 2 + int(dy > 0)


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each kind that the scene allows; yes and no are equally likely."""
    makers = (_count, _color, _shape, _relation, _existence)
    return [q for q in (make(scene.objects, rng) for make in makers) if q is not None]


def _count(objects: Sequence[SceneObject], rng: np.random.Generator) -> Question | None:
    if len(objects) < 3 or rng.random() < 0.5:
        return Question("count", "How many objects are there?", str(len(objects)))
    of = objects[int(rng.integers(len(objects)))]
    offsets = [o.x - of.x for o in objects if o is not of]
    if min(abs(d) for d in offsets) < _CLEAR_OFFSET / 3:
        return Question("count", "How many objects are there?", str(len(objects)))
    side = ("left", "right")[int(rng.integers(2))]
    number = sum(d < 0 if side == "left" else d > 0 for d in offsets)
    return Question("count", f"How many objects are {side} of the {name(of)}?", str(number))


def _color(objects: Sequence[SceneObject], rng: np.random.Generator) -> Question | None:
    shapes = [o.shape for o in objects]
    unique = [o for o in objects if shapes.count(o.shape) == 1]
    if not unique:
        return None
    o = unique[int(rng.integers(len(unique)))]
    return Question("color", f"What color is the {CLASS_NAMES[o.shape]}?", COLOR_NAMES[o.color])


def _shape(objects: Sequence[SceneObject], rng: np.random.Generator) -> Question | None:
    colors = [o.color for o in objects]
    unique = [o for o in objects if colors.count(o.color) == 1]
    if not unique:
        return None
    o = unique[int(rng.integers(len(unique)))]
    return Question("shape", f"What shape is the {COLOR_NAMES[o.color]} object?", CLASS_NAMES[o.shape])


def _relation(objects: Sequence[SceneObject], rng: np.random.Generator) -> Question | None:
    """Such as: is a left of b? The order of the two objects, drawn at random, makes the answer yes or no."""
    true: list[tuple[str, SceneObject, SceneObject]] = []
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:  # b is farther away than a
            if abs(a.x - b.x) > _CLEAR_OFFSET:
                true.append(("left of", *((a, b) if a.x < b.x else (b, a))))
            if abs(a.y - b.y) > _CLEAR_OFFSET:
                true.append(("above", *((a, b) if a.y < b.y else (b, a))))
            if b.depth > _CLEAR_DEPTH_RATIO * a.depth:
                true.append(("in front of", a, b))
    if not true:
        return None
    relation, first, second = true[int(rng.integers(len(true)))]
    if rng.random() < 0.5:
        relation, first, second = _RELATIONS[relation], second, first
    answer = "yes" if rng.random() < 0.5 else "no"
    if answer == "no":
        first, second = second, first
    return Question("relation", f"Is the {name(first)} {relation} the {name(second)}?", answer)


def _existence(objects: Sequence[SceneObject], rng: np.random.Generator) -> Question | None:
    """An absent object shares its colour or shape with a present one, so that neither alone gives the answer."""
    o = objects[int(rng.integers(len(objects)))]
    if rng.random() < 0.5:
        return Question("existence", f"Is there {_with_article(name(o))}?", "yes")
    present = {(p.shape, p.color) for p in objects}
    if rng.random() < 0.5:
        absent = [(o.shape, c) for c in range(len(COLOR_NAMES)) if (o.shape, c) not in present]
    else:
        absent = [(s, o.color) for s in range(len(CLASS_NAMES)) if (s, o.color) not in present]
    shape, color = absent[int(rng.integers(len(absent)))]
    return Question("existence", f"Is there {_with_article(f'{COLOR_NAMES[color]} {CLASS_NAMES[shape]}')}?", "no")


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _enumerate(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
