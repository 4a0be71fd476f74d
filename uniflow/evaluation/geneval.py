"""GenEval's rules (arXiv 2310.11513): whether what a detector finds in an image is what its prompt says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

THRESHOLD = 0.3  # least score of a found object
COUNTING_THRESHOLD = 0.9  # of prompts that ask for a number: objects that are found twice do more harm there
MOST_OBJECTS = 16  # of a class
POSITION_MARGIN = 0.1  # of both objects' sides, by which their centres have to be apart
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

# Classes that GenEval's prompts call by another name than COCO.
NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


@dataclass(frozen=True)
class Found:
    """An object that a detector has found: its class, by COCO's name or GenEval's, its score in [0, 1], and its box."""

    name: str
    score: float
    box: Box


# The color, one of `COLORS`, of each box of an image that shows objects of a class.
ColorOf = Callable[[Sequence[Box], str], Sequence[str]]


def failures(found: Sequence[Found], metadata: Mapping[str, Any], color_of: ColorOf) -> list[str]:
    """What an image fails of its prompt; an empty list is a correct image.

    Objects of a class are taken by falling score, and as many of them as are asked for.

    Args:
        found: objects in the image.
        metadata: of the prompt: "tag"; "include", a list of what has to be there, each with "class", "count", perhaps
            "color" and "position" (a relation, the number of the entry that it is to); "exclude", each with "class"
            and the "count" that may not be reached.
        color_of: names colors.
    """
    least = COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD
    of_class: dict[str, list[Box]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        boxes = of_class.setdefault(NAMES.get(one.name, one.name), [])
        if one.score > least and len(boxes) < MOST_OBJECTS:
            boxes.append(one.box)
    wrong: list[str] = []
    groups: list[list[Box] | None] = []  # None where the objects are not as they should be
    for wanted in metadata.get("include", []):
        boxes = of_class.get(wanted["class"], [])[: wanted["count"]]
        reason = _included(boxes, wanted, groups, color_of)
        groups.append(None if reason else boxes)
        wrong += [reason] if reason else []
    for unwanted in metadata.get("exclude", []):
        count = len(of_class.get(unwanted["class"], []))
        if count >= unwanted["count"]:
            wrong.append(f"{count} of {unwanted['class']}, fewer than {unwanted['count']} expected")
    return wrong


def _included(
    boxes: Sequence[Box], wanted: Mapping[str, Any], groups: Sequence[list[Box] | None], color_of: ColorOf
) -> str | None:
    """Why objects of a class are not what is wanted; None if they are."""
    name, count = wanted["class"], wanted["count"]
    if len(boxes) < count:
        return f"{len(boxes)} of {name}, {count} expected"
    if "color" in wanted:
        colors = color_of(boxes, name)
        if sum(color == wanted["color"] for color in colors) < count:
            return f"{name} is {' and '.join(colors)}, {wanted['color']} expected"
    if "position" in wanted:
        relation, target = wanted["position"]
        others = groups[target] if target < len(groups) else None
        if others is None:
            return f"{name} has nothing to be {relation}"
        if not all(relation in relations(box, other) for box in boxes for other in others):
            return f"{name} is not {relation}"
    return None


def relations(box: Box, other: Box) -> set[str]:
    """Where a box is relative to another one: of `RELATIONS` those that clearly hold.

    On each axis the centres' offset is lessened by 0.1 of both sides; a relation holds if what is left is more than
    half of the distance of the centres.
    """
    offsets = [(box[axis] + box[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    margins = [POSITION_MARGIN * (box[axis + 2] - box[axis] + other[axis + 2] - other[axis]) for axis in (0, 1)]
    distance = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    if distance == 0:
        return set()
    clear = [max(abs(offset) - margin, 0) / distance for offset, margin in zip(offsets, margins, strict=True)]
    pairs = (RELATIONS[:2], RELATIONS[2:])
    return {pair[int(offset > 0)] for pair, offset, share in zip(pairs, offsets, clear, strict=True) if share > 0.5}


def scores(correct: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """The share of correct images of each task, by the prompts' "tag", and "overall", the mean of these shares.

    Args:
        correct: task, and whether the image is correct, of each image.
    """
    of_task: dict[str, list[bool]] = {}
    for task, right in correct:
        of_task.setdefault(task, []).append(right)
    shares = {task: sum(each) / len(each) for task, each in of_task.items()}
    return shares | {"overall": sum(shares.values()) / len(shares)}


def check_metadata(metadata: Any) -> None:
    """Refuse what is not a line of GenEval's file.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tag"), str):
        raise ValueError('it needs a "tag"')
    entries = [*_entries(metadata, "include"), *_entries(metadata, "exclude")]
    if not entries:
        raise ValueError('it needs "include" or "exclude"')
    for entry in entries:
        if not isinstance(entry.get("class"), str) or type(entry.get("count")) is not int or entry["count"] < 1:
            raise ValueError('each entry needs a "class" and a "count" of at least 1')
        position = entry.get("position", [RELATIONS[0], 0])
        if not (isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS):
            raise ValueError(f'"position" is one of {", ".join(RELATIONS)}, and the number of an entry')
        if type(position[1]) is not int or position[1] < 0:
            raise ValueError('"position" is to an entry, by its number from 0')
        if entry.get("color", COLORS[0]) not in COLORS:
            raise ValueError(f'"color" is one of {", ".join(COLORS)}')


def _entries(metadata: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = metadata.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'"{key}" is a list of entries')
    return entries
