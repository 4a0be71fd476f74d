"""Images beside their reconstructions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch

from uniflow.core.pixels import to_unit_range
from uniflow.data.images.folder import list_images
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.metrics import psnr, ssim
from uniflow.pictures.drawing import rows_to_grid, save_picture
from uniflow.pretrained import DEFAULT
from uniflow.tokenizer import Tokenizer
from uniflow.tools.common import check_numbers, load_tokenizer


def reconstruct(
    images: list[Path],
    tokenizer: str | Path = DEFAULT,
    out: Path = Path("reconstructions"),
    steps: int | None = None,
    size: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    global_context: bool = False,
    fast_cpu: bool = True,
) -> None:
    """Write each image beside its reconstruction, and print PSNR and SSIM.

    Args:
        images: image files, or folders of them.
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, or its name on the hub; by default the small one
            in this package.
        out: folder for the images; NAME.png holds the original on the left, the reconstruction on the right.
        steps: sampler steps of a flow decoder; by default the decoder's own number.
        size: short side in pixels to which images are resized first; by default the size that the encoder was
            pretrained at; 0 keeps every image's own size.
        seed: seed of the decoder's noise.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).
        tile: side in latents of tiles to decode one after another, for images too large to decode at once.
        overlap: latents that neighbouring tiles share; by default a quarter of the tile.
        global_context: whether the decoder's global part sees the whole image at once.

    Raises:
        ValueError: if none of the images can be read, or the overlap does not fit the tile.
    """
    check_numbers(size, [] if steps is None else [steps], smallest_size=0)
    model, picked = load_tokenizer(tokenizer, device, fast_cpu)
    side = model.encoder.spec.image_size if size is None else size
    options = {"steps": steps, "tile": tile, "overlap": overlap, "global_context": global_context}
    scores: list[tuple[float, float]] = []
    for path, target in _targets(images, out):
        try:
            image = read_image(path)
        except ImageReadError as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        if side:
            image = resize_short_side(image, side)
        score = _reconstruct_one(model, image.to(picked), target, seed, **options)
        scores.append(score)
        print(f"{path}: PSNR {score[0]:.2f} dB, SSIM {score[1]:.4f}, {image.shape[2]} x {image.shape[1]} -> {target}")
    if not scores:
        raise ValueError(f"none of the {len(images)} given paths holds an image that can be read")
    if len(scores) > 1:
        mean = torch.tensor(scores, dtype=torch.float64).nanmean(dim=0)
        print(f"mean of {len(scores)}: PSNR {mean[0]:.2f} dB, SSIM {mean[1]:.4f}")


@torch.inference_mode()
def reconstruct_image(model: Tokenizer, image: torch.Tensor, seed: int, **options: Any) -> tuple[torch.Tensor, ...]:
    """One image as it is and as it is decoded.

    Args:
        model: on the image's device.
        image: uint8 (3, H, W).
        seed: of the decoder's noise.
        **options: of `Tokenizer.reconstruct`.

    Returns:
        Original and reconstruction, each (1, 3, H, W), float32 in [0, 1].
    """
    generator = torch.Generator(image.device).manual_seed(seed)
    return to_unit_range(image[None]), model.reconstruct(image[None], generator=generator, **options).float()


def quality(original: torch.Tensor, result: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM of one image (1, 3, H, W) in [0, 1]; SSIM is NaN below 11 pixels, the side of its window."""
    similarity = ssim(result, original).item() if min(original.shape[-2:]) >= 11 else float("nan")
    return psnr(result, original).item(), similarity


def _reconstruct_one(
    model: Tokenizer, image: torch.Tensor, path: Path, seed: int, **options: Any
) -> tuple[float, float]:
    """PSNR in dB and SSIM of one image, uint8 (3, H, W); writes the image to `path`."""
    original, result = reconstruct_image(model, image, seed, **options)
    save_picture(rows_to_grid([torch.cat([original, result])]), path)
    return quality(original, result)


def _targets(images: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each file, folders opened, with the image to write; equal names from different folders get a number."""
    files: list[Path] = []
    for path in images:
        files += [path / name for name in list_images(path)] if path.is_dir() else [path]
    taken: dict[str, int] = {}
    targets = []
    for file in files:
        number = taken[file.stem] = taken.get(file.stem, 0) + 1
        targets.append((file, out / (f"{file.stem}.png" if number == 1 else f"{file.stem}_{number}.png")))
    return targets
