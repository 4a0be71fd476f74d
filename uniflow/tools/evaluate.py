"""`uniflow evaluate`: a tokenizer's reconstructions under the evaluation protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from uniflow.data.base import ImageDataModule
from uniflow.evaluation.clips import ClipEvaluation, Noise, noise_digests
from uniflow.evaluation.judging import judge_batch
from uniflow.metrics import (
    Evaluation,
    ReconstructionProtocol,
    fingerprint,
    image_digests,
    slice_means,
    write_table,
)
from uniflow.metrics.video_features import VideoFeatures
from uniflow.pictures.gallery import SHOWN, WorstImages
from uniflow.tools.common import check_numbers, evaluation_batches, load_tokenizer, print_rows


def evaluate(
    tokenizer: str,
    images: list[Path] | None = None,
    data: ImageDataModule | None = None,
    out: Path | None = None,
    size: int | None = None,
    crop: float = 1.0,
    steps: list[int] | None = None,
    batch_size: int = 16,
    num_workers: int = 2,
    protocol: ReconstructionProtocol | None = None,
    slices: bool = False,
    worst: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fast_cpu: bool = True,
    noise: Noise = "shared",
    video_features: VideoFeatures | None = None,
) -> None:
    """Judge a tokenizer by the evaluation protocol, on images or a data module's test split.

    Of a data module of clips the frames are judged as images, and the clips by what changes over time, too.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or a hub id.
        images: image files, or folders of them.
        data: a data module instead of images, such as configs/data/scenes.yaml; its own crops and batches are used.
        out: folder for `results.json`, `images.csv` with one row an image, `clips.csv` with one row a clip,
            `slices.csv` and `worst.png`; none by default.
        size: side in pixels of the images' central crop; by default the size that the encoder was pretrained at.
        crop: share of the resized short side that the crop keeps.
        steps: numbers of sampler steps; 1 by default.
        batch_size: images at a time; the numbers do not depend on it.
        num_workers: processes that read pictures.
        protocol: what to compute.
        slices: whether to also print the numbers of slices of the images: little texture, much texture, each folder,
            and so on.
        worst: how many images `worst.png` shows for PSNR and for SSIM; 0 writes no such file.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).
        noise: of clips: "shared", all frames of a clip start from one noise, or "independent", each from its own.
        video_features: of clips: features for rFVD, such as VideoMAEFeatures.

    Raises:
        ValueError: if neither images nor data are named, or both are, or none can be read.
    """
    if worst < 0:
        raise ValueError(f"worst is a number of images, 0 or more, not {worst}")
    check_numbers(size, steps or (), batch_size, num_workers)
    model, picked = load_tokenizer(tokenizer, device, fast_cpu)
    batches, crops = evaluation_batches(
        model.encoder.spec.image_size, images, data, size, crop, batch_size, num_workers
    )
    counts = tuple(steps or (1,))
    evaluation = Evaluation(protocol or ReconstructionProtocol())
    lowest = [metric for metric in SHOWN if metric in evaluation.protocol.images]
    gallery = WorstImages(worst, lowest) if worst and out is not None else None
    clips = ClipEvaluation(video_features, noise)
    for batch in batches:
        with torch.inference_mode():
            pixels, frames, names = batch["image"].to(picked), batch.get("frames"), batch.get("name")
            digests = noise_digests(image_digests(pixels), frames, noise) if frames else None
            with model.over_time(frames or 1):
                decoded = judge_batch(evaluation, model, pixels, model.encode(pixels), counts, names, digests)
            if frames:
                clips.update(decoded, pixels, frames, names)
        if gallery is not None:
            gallery.update(evaluation.rows[-len(pixels) :], pixels, decoded)
    if not evaluation.rows:
        raise ValueError("none of the images can be read")
    numbers = evaluation.compute() | clips.compute()
    more = clips.settings() if clips.rows else {}
    settings = evaluation.settings(**crops, steps=list(counts), precision="32-true", **more)
    _print(numbers, settings)
    if slices:
        print_rows(slice_means(evaluation.rows), f"slices of {settings['num_images']} images")
    print(f"protocol {fingerprint(settings)}")
    if clips.rows and video_features is not None:
        print(f"rfvd by {video_features.identity()}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results = {**numbers, "protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        write_table(evaluation.rows, out / "images.csv")
        write_table(slice_means(evaluation.rows), out / "slices.csv")
        if clips.rows:
            write_table(clips.rows, out / "clips.csv")
        if gallery is not None and (picture := gallery.picture()) is not None:
            picture.save(out / "worst.png")


def _print(numbers: dict[str, float], settings: dict[str, Any]) -> None:
    table = Table(title=f"{settings['num_images']} images")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
