"""`uniflow sample`: images of a trained generator, as a grid, as files, and as an array for evaluation suites."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from uniflow.core.atomic import replacing
from uniflow.core.pixels import to_uint8
from uniflow.generators import Generator
from uniflow.pictures.drawing import rows_to_grid, save_picture
from uniflow.tools.common import check_numbers, pick_device
from uniflow.tools.prompt_sets import IMAGES, PromptSet, read_prompt_set

IN_GRID = 64  # images
MOST_IMAGES = 10**7
MOST_PIXELS = 2**26  # of an image


def sample(
    *,
    generator: Path,
    classes: str | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    per_prompt: int | None = None,
    text_encoder: str | None = None,
    decoder: str | None = None,
    count: int | None = None,
    out: Path = Path("samples"),
    npz: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    guidance_from: Literal["null", "internal"] | None = None,
    autoguide: Path | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Make images, OUT/000000.png and so on, and OUT/grid.png of the first ones.

    An image depends on the seed, its number and its condition alone: neither the batch size nor the number of processes
    changes it. Started by torchrun, each process makes its share.

    Args:
        generator: the folder RUN/generator.
        classes: numbers of classes with commas between them, such as 1,2; image i shows the class at i modulo their
            number. Without it, or a prompt, nothing is said about the images.
        prompt: text that all images shall show, of a generator that was trained with captions.
        prompts: a .txt file with a prompt in each line; GenEval's evaluation_metadata.jsonl, whose images are written
            as its scorer reads them (OUT/00000/samples/0000.png beside metadata.jsonl); or DPG-Bench's folder of .txt
            files (OUT/NAME.png, four images in a square).
        per_prompt: images of each of the prompts; 4 by default for the two benchmarks, else 1.
        text_encoder: where its text encoder is now, if it has moved: a folder, a GGUF file or a hub id.
        decoder: a tokenizer whose decoder paints the images instead of the generator's own; its encoder and bottleneck
            have to be the same, as after `train_only: decoder`.
        count: how many images. Default: one for each class, 16 without classes.
        out: folder for the images.
        npz: also write all images into this file, `arr_0` uint8 (N, H, W, 3), as the ADM evaluation suite reads them;
            with one process only.
        seed: of the noise.
        steps: sampler steps; the generator's own by default.
        guidance: strength of guidance; 1 is none; the generator's own by default.
        guidance_from: what guidance moves away from: null, the generator without a condition, or internal, what a block
            in its middle predicts, of a generator that was trained for it; the generator's own by default.
        autoguide: the folder of a weaker generator of the same tokenizer, away from which guidance moves instead.
        temperature: of a generator that draws codes, above 0: below 1 it prefers likely ones; its own by default.
        top_k: draw among this many of the likeliest codes, 0 is all; the generator's own by default.
        top_p: draw among the likeliest codes that have this probability together, 1 is all; the generator's own by
            default.
        batch_size: images at a time.
        device: where to run; auto is a GPU if there is one.

    Raises:
        FileNotFoundError: if there is no such generator.
        ValueError: if a number or a class is out of range.
    """
    if autoguide is not None and guidance_from is not None:
        raise ValueError("give --autoguide or --guidance_from, not both")
    words, prompt_set, each, total = _asked(classes, prompt, prompts, per_prompt, count)
    check_numbers(batch_size=batch_size, steps=[] if steps is None else [steps])
    if not 1 <= total <= MOST_IMAGES or seed < 0:
        raise ValueError(f"--count must be at least 1 and at most {MOST_IMAGES:,}, --seed at least 0")
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if npz is not None and processes > 1:
        raise ValueError("--npz holds all images: make it with one process")
    if npz is not None and npz.suffix != ".npz":
        raise ValueError(f"--npz must end in .npz, got {npz}")
    model = Generator.from_pretrained(generator, text_encoder=text_encoder, decoder=decoder).to(pick_device(device))
    _check_size(model, generator)
    if guidance_from is not None:
        model.network.guide_from(guidance_from)
    model.network.draw_codes(temperature=temperature, top_k=top_k, top_p=top_p)
    weak: Generator | None = None
    if autoguide is not None:
        weak = Generator.from_pretrained(autoguide, text_encoder=text_encoder).to(pick_device(device))
        _check_size(weak, autoguide)
    values = _values(model, words, prompt_set.prompts, total, each)
    groups = total // each  # the images of a prompt are made by one process
    share = range(*(number * groups // processes * each for number in (rank, rank + 1)))
    options = {"seed": seed, "steps": steps, "guidance": guidance, "autoguide": weak, "batch_size": batch_size}
    write = prompt_set.writer(out, each)
    made = _write(_batches(model, values, share, options), write, keep=npz is not None)
    if rank == 0:
        _write_grid(made[:IN_GRID], out / "grid.png", len(words))
    if npz is not None:
        arrays = np.stack([image.permute(1, 2, 0).numpy() for image in made])
        with replacing(npz) as new, open(new, "wb") as file:
            np.savez(file, arrays)
    print(f"{len(share)} images: {out}" + (f"; {npz}" if npz is not None else ""))


def _asked(
    classes: str | None, prompt: str | None, prompts: Path | None, per_prompt: int | None, count: int | None
) -> tuple[list[str], PromptSet, int, int]:
    """Classes, prompts, images of each prompt, and images in all.

    Raises:
        ValueError: for options that do not go together, or prompts that cannot be read.
    """
    if sum(given is not None for given in (classes or None, prompt, prompts)) > 1:
        raise ValueError("give one of --classes, --prompt and --prompts, not several")
    words = [word.strip() for word in classes.split(",")] if classes else []
    if prompts is None:
        if per_prompt is not None:
            raise ValueError("--per_prompt is of --prompts, which is missing")
        told = PromptSet("lines", [] if prompt is None else [prompt])
        return words, told, 1, count if count is not None else len(words) or 16
    if count is not None:
        raise ValueError("--count is not for --prompts: give --per_prompt, the images of each")
    prompt_set = read_prompt_set(prompts)
    each = per_prompt if per_prompt is not None else IMAGES[prompt_set.layout]
    if each < 1:
        raise ValueError(f"--per_prompt must be at least 1, not {each}")
    return words, prompt_set, each, len(prompt_set.prompts) * each


def _values(model: Generator, classes: list[str], prompts: list[str], count: int, each: int) -> Any:
    """What each of `count` images shall show, `each` in a row the same, as the condition takes it; None: nothing."""
    field = model.condition.field
    for option, given, wanted in (("--classes", classes, "label"), ("--prompt", prompts, "caption")):
        if given and field != wanted:
            told = "nothing" if field is None else f"each image's {field}"
            raise ValueError(f"{option} is not for this generator, which was told {told} in training")
    words = classes or [prompt for prompt in prompts for _ in range(each)]
    return model.condition.parse([words[number % len(words)] for number in range(count)]) if words else None


def _check_size(model: Generator, folder: Path) -> None:
    """Refuse a generator whose config asks for more than anybody samples.

    Raises:
        ValueError: naming the folder, the number and its range.
    """
    height, width = (side * model.tokenizer.patch_size for side in model.grid)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{folder} makes images of {height} x {width} pixels, more than {MOST_PIXELS:,} in all")


def _batches(model: Generator, values: Any, share: range, options: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """Number of the first image, and images (B, 3, H, W) uint8, batch by batch."""
    size = options["batch_size"]
    for begin in range(share.start, share.stop, size):
        end = min(begin + size, share.stop)
        chosen = None if values is None else values[begin:end]
        yield begin, to_uint8(model.sample(chosen, end - begin, first=begin, **options))


def _write(batches: Iterator[tuple[int, Tensor]], write: Callable[[int, Tensor], None], keep: bool) -> list[Tensor]:
    """Write the images as they come; those for the grid, or all, are returned."""
    kept: list[Tensor] = []
    for begin, images in batches:
        for number, image in enumerate(images, start=begin):
            write(number, image)
        room = len(images) if keep else max(0, IN_GRID - len(kept))
        kept += list(images[:room])
    return kept


def _write_grid(images: list[Tensor], path: Path, classes: int) -> None:
    """One column for each class where there are a few, else a square."""
    columns = classes if 1 < classes <= len(images) and classes <= 16 else max(1, round(len(images) ** 0.5))
    whole = torch.stack(images).float() / 255
    rows = [row for row in whole.split(columns) if len(row) == columns]
    save_picture(rows_to_grid(rows), path)
