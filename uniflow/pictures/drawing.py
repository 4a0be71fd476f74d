"""Images that people look at: grids of images, features and numbers as colours, sheets with captions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid, save_image


def pca_basis(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three principal directions of a batch of feature maps.

    Args:
        features: (B, D, h, w), D >= 3.

    Returns:
        Mean (D,), directions (D, 3) and the half range (3,) that maps projections to [-1, 1] for all but the outer 2 %.
    """
    tokens = features.detach().double().permute(0, 2, 3, 1).flatten(0, 2)
    mean = tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh((tokens - mean).T @ (tokens - mean))
    directions = vectors[:, -3:].flip(1)
    # An eigenvector's sign is arbitrary: fix it, so that two runs show the same colours.
    directions = directions * directions.sum(dim=0).sign()
    half_range = ((tokens - mean) @ directions).abs().quantile(0.98, dim=0).clamp_min(1e-12)
    return mean, directions, half_range


def pca_image(features: Tensor, basis: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Feature maps (B, D, h, w) as colours (B, 3, *size) in [0, 1], one colour a patch, by a basis of `pca_basis`."""
    mean, directions, half_range = basis
    tokens = features.detach().double().permute(0, 2, 3, 1)
    colours = ((tokens - mean) @ directions / half_range * 0.5 + 0.5).clamp(0, 1)
    return F.interpolate(colours.permute(0, 3, 1, 2), size=size, mode="nearest").float()


def heat_map(values: Tensor) -> Tensor:
    """Numbers (..., h, w) in [0, 1] as colours (..., 3, h, w) from black (0) over red and yellow to white (1).

    The lightness rises throughout, so the image can also be read in grey.
    """
    values = values.detach().float().clamp(0, 1)
    # Red is full at .45, green at .85; blue comes last.
    return torch.stack([values / 0.45, (values - 0.3) / 0.55, (values - 0.7) / 0.3], dim=-3).clamp(0, 1)


def error_map(reconstruction: Tensor, original: Tensor, gain: float = 4.0) -> Tensor:
    """|reconstruction - original| times `gain`, cut to [0, 1]; images (..., 3, H, W) in [0, 1]."""
    return ((reconstruction.float() - original.float()).abs() * gain).clamp(0, 1)


def rows_to_grid(rows: Sequence[Tensor], scale: int = 1) -> Tensor:
    """Rows of images (B, 3, H, W) in [0, 1], all of one shape, as one image (3, H', W'), one row under the other."""
    columns = rows[0].shape[0]
    images = torch.cat([row.detach().float().cpu() for row in rows])
    if scale > 1:
        images = F.interpolate(images, scale_factor=scale, mode="nearest")
    return make_grid(images.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)


def save_picture(picture: Tensor, path: Path) -> None:
    """Write an image (3, H, W) in [0, 1] as PNG, making its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)


def row_png(images: Tensor, largest: int = 128) -> bytes:
    """Images uint8 (B, 3, H, W) in one row as a PNG file; those larger than `largest` pixels are made smaller."""
    longer = max(images.shape[-2:])
    if longer > largest:
        images = resize(images, [max(1, side * largest // longer) for side in images.shape[-2:]], antialias=True)
    opaque = torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)  # between the images nothing is
    file = io.BytesIO()
    to_pil_image(make_grid(opaque, nrow=len(images), padding=2)).save(file, "PNG", optimize=True)
    return file.getvalue()


def fit_side(picture: Tensor, side: int) -> Image.Image:
    """An image (3, H, W) in [0, 1] that is at most `side` pixels long; a small one is enlarged by a whole factor."""
    longer = max(picture.shape[-2:])
    picture = picture.detach().float().clamp(0, 1).cpu()
    if longer > side:
        picture = resize(picture, [max(1, round(s * side / longer)) for s in picture.shape[-2:]], antialias=True)
    factor = max(1, side // longer)
    return to_pil_image(picture.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1).clamp(0, 1))


def captioned_sheet(
    rows: Sequence[Sequence[tuple[str, Tensor]]], side: int | Sequence[int] = 224, title: str = ""
) -> Image.Image:
    """Rows of images, each under its caption, as one image.

    Args:
        rows: (caption, image (3, H, W) in [0, 1]); a caption can have several lines, and is cut to its image's
            width.
        side: what images are brought to, see `fit_side`; one for all rows, or one for each.
        title: over all of them.
    """
    font, large = ImageFont.load_default(13), ImageFont.load_default(18)
    gap, line = 10, 17
    sides = [side] * len(rows) if isinstance(side, int) else side
    tiles = [[(_printable(text), fit_side(p, s)) for text, p in row] for row, s in zip(rows, sides, strict=True)]
    heads = [line * max(caption.count("\n") + 1 for caption, _ in row) for row in tiles]
    heights = [head + max(tile.height for _, tile in row) + gap for head, row in zip(heads, tiles, strict=True)]
    top = gap + (28 if title else 0)
    width = gap + max(sum(tile.width + gap for _, tile in row) for row in tiles)
    sheet = Image.new("RGB", (max(width, 2 * gap + int(large.getlength(title))), top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), _printable(title), fill="black", font=large)
    for row, head, height in zip(tiles, heads, heights, strict=True):
        left = gap
        for caption, tile in row:
            for number, text in enumerate(caption.split("\n")):
                draw.text((left, top + number * line), _shortened(text, tile.width, font), fill="black", font=font)
            sheet.paste(tile, (left, top + head))
            left += tile.width + gap
        top += height
    return sheet


def _printable(text: str) -> str:
    """Without what a file name may hold and no font has."""
    return text.encode("utf-8", "replace").decode()


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its end as fits into `width` pixels: a path's end tells more than its start."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


SHOWN = 6  # images of a comparison
LARGE, SMALL = 256, 128  # their sides in pixels


def comparison_picture(
    runs: Mapping[str, Mapping[str, Tensor]], captions: Mapping[str, str] | None = None, first_large: bool = False
) -> Image.Image:
    """A labelled image of several runs on the same images.

    The originals come first and large, with `first_large` the first run's reconstructions under them. Then every run
    has a row of pairs: its reconstruction, and beside it the student's features; the first pair is the original and the
    teacher's features.

    Args:
        runs: for each run the rows of `tokenizer_rows`, uint8 (B, 3, H, W), of one shape; the first 6 images are shown.
        captions: what else stands beside the rows of each run, and of "teacher"; lines, such as its numbers.
        first_large: see above.
    """
    notes = captions or {}
    first = next(iter(runs))
    decoded = {
        name: min((key for key in rows if key.startswith("reconstruction")), key=_steps) for name, rows in runs.items()
    }
    large = [("original", "", runs[first]["original"])]
    if first_large:
        large.append((_words(first), f"{decoded[first]}\n{notes.get(first, '')}", runs[first][decoded[first]]))
    small = [
        (
            "before training",
            f"the original\n{notes.get('teacher', '')}",
            runs[first]["original"],
            runs[first]["teacher"],
        )
    ]
    small += [
        (_words(name), f"{decoded[name]}\n{notes.get(name, '')}", rows[decoded[name]], rows["student"])
        for name, rows in runs.items()
    ]
    rows = [(name, note, [_tile(LARGE, image) for image in images[:SHOWN]]) for name, note, images in large]
    explained = len(rows)
    rows += [
        (name, note, [_tile(SMALL, *pair) for pair in zip(left[:SHOWN], right[:SHOWN], strict=True)])
        for name, note, left, right in small
    ]
    return _labelled(rows, {explained: EXPLANATION})


EXPLANATION = (
    "Left of each pair: the reconstruction; PSNR says how near it comes to the original. Right: the encoder's features "
    "of each patch, in three colours; where they differ from those before training, the encoder has forgotten. Probe: "
    "images whose class can be named from the features."
)


def _steps(row: str) -> int:
    """`reconstruction, 4 steps` -> 4."""
    return int(row.split()[1])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _tile(side: int, *images: Tensor) -> Image.Image:
    """Images (3, H, W), uint8, side by side, each brought to `side`."""
    pictures = [fit_side(image / 255, side) for image in images]
    tile = Image.new("RGB", (sum(p.width + 2 for p in pictures) - 2, pictures[0].height), "white")
    for number, picture in enumerate(pictures):
        tile.paste(picture, (number * (picture.width + 2), 0))
    return tile


def _labelled(rows: Sequence[tuple[str, str, Sequence[Image.Image]]], headings: Mapping[int, str]) -> Image.Image:
    """Rows of tiles, each with its name and a note to its left; a heading stands above the row of its number."""
    bold, font, gap = ImageFont.load_default(17), ImageFont.load_default(14), 6
    labels = [[name, *note.strip().split("\n")] for name, note, _ in rows]
    margin = 3 * gap + max(int(bold.getlength(line)) for label in labels for line in label)
    cell = max(tile.width for _, _, tiles in rows for tile in tiles)
    width = margin + len(rows[0][2]) * (cell + gap)
    wrapped = {number: _wrapped(text, width - 2 * gap, font) for number, text in headings.items()}
    heights = [max(tiles[0].height, 22 * len(label)) for (_, _, tiles), label in zip(rows, labels, strict=True)]
    total = gap + sum(heights) + gap * len(rows) + sum(20 * len(lines) + 2 * gap for lines in wrapped.values())
    picture = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(picture)
    top = gap
    for number, ((_, _, tiles), (name, *note), height) in enumerate(zip(rows, labels, heights, strict=True)):
        for line in wrapped.get(number, []):
            draw.text((gap, top + gap), line, fill="black", font=font)
            top += 20
        top += 2 * gap if number in wrapped else 0
        draw.text((gap, top), name, fill="black", font=bold)
        for place, line in enumerate(note):
            draw.text((gap, top + 24 + 20 * place), line, fill="#444444", font=font)
        for column, tile in enumerate(tiles):
            picture.paste(tile, (margin + column * (cell + gap), top))
        top += height + gap
    return picture


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
