"""Which benchmark a file is."""

from __future__ import annotations

from pathlib import Path

from uniflow.core.files import open_regular
from uniflow.core.json_files import LARGE, parse_json, read_json_object
from uniflow.language.benchmarks.base import Benchmark
from uniflow.language.benchmarks.gqa import GQA
from uniflow.language.benchmarks.mmbench import MMBench
from uniflow.language.benchmarks.mme import MME
from uniflow.language.benchmarks.pope import POPE
from uniflow.language.benchmarks.textvqa import TextVQA

_KNOWN = (
    "POPE (one JSON object a line), GQA (a JSON object of questions), TextVQA (JSON with a list 'data'), "
    "MME (its folder, or a table) or MMBench (a table)"
)


def read_benchmark(path: Path, images: Path | None = None, ocr: Path | None = None) -> Benchmark:
    """Read the official file of POPE, GQA, TextVQA, MME or MMBench; its form says which one it is.

    Args:
        path: the file, or MME's folder.
        images: folder of the images, where they are not in the file.
        ocr: file of OCR tokens to add to TextVQA's prompts.

    Raises:
        ValueError: if it is none of these, something in it is wrong, an image is missing, or there are no questions.
    """
    benchmark = _read(path, images, ocr)
    if ocr is not None and not isinstance(benchmark, TextVQA):
        raise ValueError(f"--ocr adds OCR tokens to TextVQA's prompts, and {path} is {benchmark.name}")
    if not benchmark.questions:
        raise ValueError(f"{path}: no questions of {benchmark.name}")
    return benchmark


def _read(path: Path, images: Path | None, ocr: Path | None) -> Benchmark:
    if not path.exists():
        raise ValueError(f"no such benchmark: {path}; give the file of {_KNOWN}")
    if path.is_dir():
        return MME.read(path)
    start = _start(path)
    if "\t" in start.partition("\n")[0]:
        columns = start.partition("\n")[0].strip().split("\t")
        return MMBench.read(path) if {"A", "B"} <= set(columns) else MME.read(path)
    if _is_pope(start):
        return POPE.read(path, images)
    if start.lstrip().startswith("{"):
        content = read_json_object(path, LARGE)
        if isinstance(content.get("data"), list):
            return TextVQA.read(path, images, ocr)
        if content and all(isinstance(record, dict) and "imageId" in record for record in content.values()):
            return GQA.read(path, images)
    raise ValueError(f"{path} is not a benchmark that is known here: give the file of {_KNOWN}")


def _start(path: Path) -> str:
    with open_regular(path) as file:
        return file.read(2**16).decode("utf-8-sig", "replace")


def _is_pope(start: str) -> bool:
    """Whether the first line is a whole JSON object with a label."""
    try:
        record = parse_json(start.partition("\n")[0], "the first line")
    except ValueError:
        return False
    return isinstance(record, dict) and {"text", "label"} <= record.keys()
