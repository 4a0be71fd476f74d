"""Files of prompts, and the layouts in which their benchmarks read the images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from uniflow.core.atomic import replacing
from uniflow.core.errors import one_line
from uniflow.core.files import read_text

Layout = Literal["lines", "geneval", "dpg"]
IMAGES = {"lines": 1, "geneval": 4, "dpg": 4}  # of each prompt, as the benchmarks ask for


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how the images of each are written.

    Attributes:
        layout: "lines": OUT/000000.png and so on; "geneval": OUT/00000/samples/0000.png beside the line of the prompt's
            file in OUT/00000/metadata.jsonl; "dpg": OUT/NAME.png, the images of a prompt in a square.
        prompts: texts.
        names: of the prompts in "dpg".
        lines: of the file, in "geneval".
    """

    layout: Layout
    prompts: list[str]
    names: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def writer(self, out: Path, each: int) -> Callable[[int, Tensor], None]:
        """What writes image number i, uint8 (3, H, W), of prompt i // each; to be called in the order of the numbers.

        Raises:
            ValueError: if the images of a prompt make no square, and the layout needs one.
        """
        if self.layout == "geneval":
            return lambda number, image: self._write_geneval(
                out / f"{number // each:05d}", *divmod(number, each), image
            )
        if self.layout == "lines":
            return lambda number, image: write_png(image, out / f"{number:06d}.png")
        side = round(each**0.5)
        if side**2 != each:
            raise ValueError(
                f"DPG-Bench reads the images of a prompt as one square: --per_prompt has to be 1, 4, 9, not {each}"
            )
        group: list[Tensor] = []

        def write(number: int, image: Tensor) -> None:
            group.append(image)
            if len(group) == each:
                rows = [torch.cat(group[begin : begin + side], dim=-1) for begin in range(0, each, side)]
                write_png(torch.cat(rows, dim=-2), out / f"{self.names[number // each]}.png")
                group.clear()

        return write

    def _write_geneval(self, folder: Path, prompt: int, place: int, image: Tensor) -> None:
        write_png(image, folder / "samples" / f"{place:04d}.png")
        if place == 0:
            with replacing(folder / "metadata.jsonl") as new:
                new.write_text(self.lines[prompt])


def write_png(image: Tensor, path: Path) -> None:
    """Write an image, uint8 (3, H, W), in one step."""
    with replacing(path) as new:
        to_pil_image(image).save(new, "PNG")


def read_prompt_set(path: Path) -> PromptSet:
    """Read a file with a prompt in each line, GenEval's .jsonl (arXiv 2310.11513), or DPG-Bench's folder of .txt files
    (arXiv 2403.05135).

    Raises:
        ValueError: if there is no such thing, or it holds no prompts.
        OSError: if a file cannot be read.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        found = PromptSet("dpg", [" ".join(read_text(file).split()) for file in files], [file.stem for file in files])
    elif path.suffix == ".jsonl":
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        found = PromptSet("geneval", [_prompt(line, n, path) for n, line in enumerate(lines, 1)], lines=lines)
    elif path.suffix == ".txt":
        found = PromptSet("lines", [line.strip() for line in read_text(path).splitlines() if line.strip()])
    else:
        raise ValueError(
            f"--prompts {path}: give a .txt file with a prompt in each line, GenEval's .jsonl, or DPG-Bench's folder "
            "of .txt files"
        )
    if not found.prompts or not all(found.prompts):
        empty = found.names[found.prompts.index("")] + ".txt" if "" in found.prompts else "it"
        raise ValueError(f"--prompts {path}: {empty} holds no prompt")
    return found


def _prompt(line: str, number: int, path: Path) -> str:
    """The prompt in a line of GenEval's file."""
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'--prompts {path}, line {number}: no JSON with a "prompt" ({one_line(error, 80)})') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'--prompts {path}, line {number}: its "prompt" is not a text')
    return prompt
