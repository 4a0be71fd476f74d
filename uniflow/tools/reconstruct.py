"""Images and clips beside their reconstructions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch

from uniflow.core.pixels import to_unit_range
from uniflow.data.images.listing import list_images, walk_images
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.images.transforms import resize_short_side
from uniflow.data.video.files import EXTENSIONS as VIDEO_EXTENSIONS
from uniflow.evaluation.clips import Noise
from uniflow.metrics import psnr, ssim
from uniflow.metrics.video import describe
from uniflow.pictures.drawing import rows_to_grid, save_picture
from uniflow.pretrained import DEFAULT
from uniflow.tokenizer import Tokenizer
from uniflow.tools.common import check_numbers, load_tokenizer
from uniflow.tools.reconstruct_clip import reconstruct_clip


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
    noise: Noise = "shared",
    frames: int | None = None,
    folders: Literal["files", "clips"] = "files",
) -> None:
    """Write each image and each clip beside its reconstruction, and print PSNR and SSIM.

    Of a clip the PSNR of the differences of neighbouring frames and the flicker where nothing moves are printed, too.

    Args:
        images: image files, video files (.mp4, .m4v, .mov, .avi, .mkv, .webm), or folders of them.
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, or its name on the hub; by default the small one
            in this package.
        out: folder for the results; NAME.png, of a clip NAME.mp4 (H.264, with its sound), holds the original on the
            left, the reconstruction on the right.
        steps: sampler steps of a flow decoder; by default the decoder's own number.
        size: short side in pixels to which images are resized first; by default the size that the encoder was
            pretrained at; 0 keeps every image's own size.
        seed: seed of the decoder's noise.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).
        tile: side in latents of tiles to decode one after another, for images too large to decode at once.
        overlap: latents that neighbouring tiles share; by default a quarter of the tile.
        global_context: whether the decoder's global part sees the whole image at once.
        noise: of a clip: "shared", all frames start from one noise, or "independent", each from its own.
        frames: of a clip: only its first so many frames.
        folders: "files": each file in a folder by itself; "clips": a folder is one clip, its images are the frames.

    Raises:
        ValueError: if nothing can be read, a result would replace its original, or the overlap does not fit the tile.
    """
    check_numbers(size, [] if steps is None else [steps], smallest_size=0)
    if frames is not None and frames < 1:
        raise ValueError(f"--frames must be at least 1, not {frames}")
    model, picked = load_tokenizer(tokenizer, device, fast_cpu)
    side = model.encoder.spec.image_size if size is None else size
    options = {"steps": steps, "tile": tile, "overlap": overlap, "global_context": global_context}
    clip_options = {"side": side, "seed": seed, "noise": noise, "frames": frames, **options}
    scores: list[tuple[float, float]] = []
    for path, target in _targets(images, out, folders):
        try:
            if target.suffix == ".mp4":
                result = reconstruct_clip(model, path, target, **clip_options)  # type: ignore[arg-type]
                score, report = (result["psnr"], result["ssim"]), describe(result)
            else:
                image = read_image(path)
                image = resize_short_side(image, side, str(path)) if side else image
                score = _reconstruct_one(model, image.to(picked), target, seed, **options)
                report = f"PSNR {score[0]:.2f} dB, SSIM {score[1]:.4f}, {image.shape[2]} x {image.shape[1]}"
        except ImageReadError as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        scores.append(score)
        print(f"{path}: {report} -> {target}")
    if not scores:
        raise ValueError(f"none of the {len(images)} given paths holds an image or a clip that can be read")
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


def _targets(paths: list[Path], out: Path, folders: Literal["files", "clips"] = "files") -> list[tuple[Path, Path]]:
    """Each file with what to write, .mp4 for clips; equal names from different folders get a number."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir() and folders == "files":
            files += [path / name for name in sorted([*list_images(path), *walk_images(path, VIDEO_EXTENSIONS)])]
        else:
            files.append(path)
    taken: dict[str, int] = {}
    targets = []
    for file in files:
        clip = file.is_dir() or file.suffix.lower() in VIDEO_EXTENSIONS
        stem, suffix = file.absolute().name if file.is_dir() else file.stem, ".mp4" if clip else ".png"
        number = taken[stem + suffix] = taken.get(stem + suffix, 0) + 1
        target = out / (f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}")
        if target.exists() and file.exists() and target.samefile(file):
            raise ValueError(f"{target} would be written over: give another folder to --out")
        targets.append((file, target))
    return targets
