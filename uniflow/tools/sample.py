"""`uniflow sample`: images of a trained generator, as a grid, as files, and as an array for evaluation suites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from uniflow.core.atomic import replacing
from uniflow.core.pixels import to_uint8
from uniflow.generators import Generator
from uniflow.pictures.drawing import rows_to_grid, save_picture
from uniflow.tools.common import check_numbers, pick_device

IN_GRID = 64  # images
MOST_IMAGES = 10**7
MOST_PIXELS = 2**26  # of an image


def sample(
    *,
    generator: Path,
    classes: str | None = None,
    prompt: str | None = None,
    text_encoder: str | None = None,
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
        text_encoder: where its text encoder is now, if it has moved: a folder, a GGUF file or a hub id.
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
        top_k: draw among so many of the likeliest codes, 0 is all; the generator's own by default.
        top_p: draw among the likeliest codes that have this probability together, 1 is all; the generator's own by
            default.
        batch_size: images at a time.
        device: where to run; auto is a GPU if there is one.

    Raises:
        FileNotFoundError: if there is no such generator.
        ValueError: if a number or a class is out of range.
    """
    if classes and prompt is not None:
        raise ValueError("give --classes or --prompt, not both")
    if autoguide is not None and guidance_from is not None:
        raise ValueError("give --autoguide or --guidance_from, not both")
    words = [word.strip() for word in classes.split(",")] if classes else []
    total = count if count is not None else len(words) or 16
    check_numbers(batch_size=batch_size, steps=[] if steps is None else [steps])
    if not 1 <= total <= MOST_IMAGES or seed < 0:
        raise ValueError(f"--count must be at least 1 and at most {MOST_IMAGES:,}, --seed at least 0")
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if npz is not None and processes > 1:
        raise ValueError("--npz holds all images: make it with one process")
    if npz is not None and npz.suffix != ".npz":
        raise ValueError(f"--npz must end in .npz, got {npz}")
    model = Generator.from_pretrained(generator, text_encoder=text_encoder).to(pick_device(device))
    _check_size(model, generator)
    if guidance_from is not None:
        model.network.guide_from(guidance_from)
    model.network.draw_codes(temperature=temperature, top_k=top_k, top_p=top_p)
    weak: Generator | None = None
    if autoguide is not None:
        weak = Generator.from_pretrained(autoguide, text_encoder=text_encoder).to(pick_device(device))
        _check_size(weak, autoguide)
    values = _values(model, words, prompt, total)
    share = range(rank * total // processes, (rank + 1) * total // processes)
    options = {"seed": seed, "steps": steps, "guidance": guidance, "autoguide": weak, "batch_size": batch_size}
    made = _write(_batches(model, values, share, options), out, keep=npz is not None)
    if rank == 0:
        _write_grid(made[:IN_GRID], out / "grid.png", len(words))
    if npz is not None:
        arrays = np.stack([image.permute(1, 2, 0).numpy() for image in made])
        with replacing(npz) as new, open(new, "wb") as file:
            np.savez(file, arrays)
    print(f"{len(share)} images: {out}" + (f"; {npz}" if npz is not None else ""))


def _values(model: Generator, classes: list[str], prompt: str | None, count: int) -> Any:
    """What each of `count` images shall show, as the condition takes it; None if nothing is said."""
    field = model.condition.field
    for option, given, wanted in (("--classes", classes, "label"), ("--prompt", prompt is not None, "caption")):
        if given and field != wanted:
            told = "nothing" if field is None else f"each image's {field}"
            raise ValueError(f"{option} is not for this generator, which was told {told} in training")
    words = classes if prompt is None else [prompt]
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


def _write(batches: Iterator[tuple[int, Tensor]], out: Path, keep: bool) -> list[Tensor]:
    """Write the images as they come; those for the grid, or all, are returned."""
    out.mkdir(parents=True, exist_ok=True)
    kept: list[Tensor] = []
    for begin, images in batches:
        for number, image in enumerate(images, start=begin):
            with replacing(out / f"{number:06d}.png") as new:
                to_pil_image(image).save(new, "PNG")
        room = len(images) if keep else max(0, IN_GRID - len(kept))
        kept += list(images[:room])
    return kept


def _write_grid(images: list[Tensor], path: Path, classes: int) -> None:
    """One column for each class where there are a few, else a square."""
    columns = classes if 1 < classes <= len(images) and classes <= 16 else max(1, round(len(images) ** 0.5))
    whole = torch.stack(images).float() / 255
    rows = [row for row in whole.split(columns) if len(row) == columns]
    save_picture(rows_to_grid(rows), path)
