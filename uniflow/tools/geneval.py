"""`uniflow geneval`: whether images show what GenEval's prompts say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.progress import track

from uniflow.core.errors import one_line
from uniflow.core.files import read_text
from uniflow.data.images.listing import list_images
from uniflow.data.images.reading import read_image
from uniflow.evaluation.detectors import ColorJudge, ObjectDetector
from uniflow.evaluation.geneval import THRESHOLD, check_metadata, failures, scores
from uniflow.tools.common import pick_device, print_rows


def geneval(
    images: Path,
    *,
    detector: str,
    clip: str | None = None,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score the images of `uniflow sample --prompts evaluation_metadata.jsonl` by GenEval's rules.

    Look first at what the detector itself is worth: a folder of known pictures in the same form is scored too.

    Args:
        images: a folder of folders, each with the line of its prompt in `metadata.jsonl` and images in `samples/`.
        detector: an object detector of transformers that knows COCO's classes: its folder, or its name on the hub. The
            published numbers are by Mask2Former; by another detector they are others.
        clip: a CLIP model of transformers, which names colors; needed where prompts have any.
        out: folder for `results.json` and `images.jsonl` with what each image fails; none by default.
        device: where to compute; auto takes a GPU if there is one.

    Raises:
        ValueError: if there are no such folders, one of them cannot be read, or a model cannot be loaded.
    """
    prompts = list(_prompts(images))
    if clip is None and any("color" in entry for data, _ in prompts for entry in data.get("include", [])):
        raise ValueError("some prompts ask for colors: name a CLIP model that tells them, with --clip")
    picked = pick_device(device)
    detect = ObjectDetector(detector, picked)
    color_of = None if clip is None else ColorJudge(clip, picked)
    judged = []
    for metadata, files in track(prompts, description="prompts", transient=True):
        for file in files:
            image = read_image(file)
            wrong = failures(detect(image, THRESHOLD), metadata, partial(color_of or _no_colors, image))
            name = file.relative_to(images).as_posix()
            judged.append({"image": name, "tag": metadata["tag"], "correct": not wrong, "wrong": wrong})
    numbers = scores([(row["tag"], row["correct"]) for row in judged])
    print_rows([{"task": task, "correct": share} for task, share in numbers.items()], f"{len(judged)} images")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results = {**numbers, "images": len(judged), "detector": detector, "clip": clip}
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (out / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))


def _no_colors(*_: Any) -> list[str]:
    raise AssertionError("no prompt asks for a color")


def _prompts(folder: Path) -> Iterator[tuple[dict[str, Any], list[Path]]]:
    """The line of each prompt, and its images.

    Raises:
        ValueError: naming the folder or file that is wrong.
    """
    files = sorted(folder.glob("*/metadata.jsonl"))
    if not files:
        raise ValueError(f"{folder} has no folders with metadata.jsonl, as `uniflow sample --prompts` writes them")
    for file in files:
        try:
            metadata = json.loads(read_text(file))
            check_metadata(metadata)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not a line of GenEval's file: {one_line(error, 150)}") from error
        samples = file.parent / "samples"
        images = [samples / name for name in list_images(samples)] if samples.is_dir() else []
        if not images:
            raise ValueError(f"{samples} holds no images")
        yield metadata, images
