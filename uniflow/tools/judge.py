"""`uniflow judge`: generated images against real ones, whoever made them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from uniflow.core.files import open_regular
from uniflow.core.pixels import to_unit_range
from uniflow.data.base import ResumableDataLoader
from uniflow.data.images.listing import list_images
from uniflow.data.images.transforms import CenterCrop
from uniflow.evaluation.generated import Gathered, ImageSet, compare_sets
from uniflow.metrics import EncoderFeatures, FeatureExtractor, fingerprint
from uniflow.tools.common import Pictures, check_numbers, pick_device, print_rows

FORMAT = 1  # raised when a number's definition changes, so that fingerprints do
SAMPLED = ("000000.png", "grid.png")  # in a folder of `uniflow sample`
ARRAY = "arr_0.npy"  # where the ADM evaluation suite has the images


def judge(
    generated: Path,
    *,
    reference: Path,
    features: list[FeatureExtractor] | None = None,
    out: Path | None = None,
    size: int | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Judge generated images by the features of real ones: Frechet distance, KID, precision and recall.

    The same numbers as in `uniflow test` of a generator. With the published Inception network the Frechet distance is
    the gFID, and there is an inception score.

    Args:
        generated: a folder of images, or a .npz file with `arr_0`, uint8 (N, H, W, 3), as `uniflow sample --npz` and
            the ADM evaluation suite write it.
        reference: the real images, in either form.
        features: what to compare by, such as uniflow.metrics.InceptionFeatures; the embedded encoder by default.
        out: folder for `results.json`; none by default.
        size: side in pixels of a central crop of the images in folders; by default they are taken as they are.
        batch_size: images at a time; the numbers do not depend on it.
        num_workers: processes that read pictures.
        device: where to compute; auto takes a GPU if there is one.

    Raises:
        ValueError: if images are missing, cannot be read, or differ in size.
    """
    check_numbers(size, (), batch_size, num_workers)
    extractors: list[FeatureExtractor] = [EncoderFeatures()] if features is None else features
    if not extractors or len({extractor.name for extractor in extractors}) < len(extractors):
        raise ValueError(f"--features: names must differ, got {[extractor.name for extractor in extractors]}")
    picked = pick_device(device)
    sides = []
    for path in (generated, reference):
        sets = [ImageSet(extractor) for extractor in extractors]
        for images in _batches(path, size, batch_size, num_workers):
            pixels = to_unit_range(images.to(picked))
            for images_of in sets:
                images_of.update(pixels)
        sides.append([images_of.gather() for images_of in sets])
    numbers: dict[str, float] = {}
    for extractor, made, real in zip(extractors, *sides, strict=True):
        numbers |= compare_sets(made, real, extractor.name)
    settings = _settings(extractors, sides[0][0], sides[1][0], size)
    print_rows([{"number": name, "value": value} for name, value in numbers.items()], _title(settings))
    print(f"protocol {fingerprint(settings)}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        results = {**numbers, "protocol/fingerprint": fingerprint(settings), "protocol/settings": settings}
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def _settings(
    extractors: list[FeatureExtractor], generated: Gathered, reference: Gathered, size: int | None
) -> dict[str, Any]:
    """What the numbers depend on besides the generated images: two equal fingerprints are comparable."""
    return {
        "format": FORMAT,
        "kind": "generation",
        "images": len(generated.features),
        "reference": {"images": len(reference.features), "contents": reference.contents},
        "features": [extractor.identity() for extractor in extractors],
        "center_crop": size,
    }


def _title(settings: dict[str, Any]) -> str:
    reference = settings["reference"]
    return f"{settings['images']} images against {reference['images']} ({reference['contents']})"


def _batches(path: Path, size: int | None, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    """Images (B, 3, H, W), uint8, of a folder or an array.

    Raises:
        ValueError: if there are fewer than 2, or they differ in size.
    """
    if path.suffix == ".npz":
        if size is not None:
            raise ValueError(f"--size is for folders of images, and {path} is an array: leave it out")
        yield from array_batches(path, batch_size)
        return
    pictures = Pictures(_files(path), None if size is None else CenterCrop(size))
    loader = ResumableDataLoader(pictures, batch_size, num_workers=num_workers, collate_fn=_list_of_images)
    count, shape = 0, None
    for images in loader:
        for image in images:
            shape = shape or image.shape
            if image.shape != shape:
                sizes = " and ".join(f"{height} x {width}" for _, height, width in (shape, image.shape))
                raise ValueError(f"{path}: images of {sizes} pixels: give --size, by which all are cropped")
        count += len(images)
        if images:
            yield torch.stack(images)
    if count < 2:
        raise ValueError(f"{path}: a set of images has 2 at least, and {count} can be read")


def _files(path: Path) -> list[Path]:
    """The folder, or what it holds besides the grid that `uniflow sample` draws of its images."""
    if not (path / SAMPLED[0]).is_file():
        return [path]
    return [path / name for name in list_images(path) if name != SAMPLED[1]]


def _list_of_images(samples: list[dict[str, Any] | None]) -> list[Tensor]:
    return [sample["image"] for sample in samples if sample is not None]


def array_batches(path: Path, batch_size: int) -> Iterator[Tensor]:
    """Images (B, 3, H, W), uint8, of `arr_0` in a .npz file, batch by batch: the array need not fit into memory.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive, archive.open(ARRAY) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read_header[version](file)
            if fortran or dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] < 2:
                raise ValueError(f"arr_0 must be uint8 (N, H, W, 3) with N at least 2, not {dtype} {shape}")
            row = int(np.prod(shape[1:]))
            for begin in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - begin)
                content = file.read(count * row)
                if len(content) < count * row:
                    raise ValueError("the file ends before the array does")
                array = np.frombuffer(bytearray(content), np.uint8).reshape(count, *shape[1:])
                yield torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = f"it has no {ARRAY}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} holds no images: {reason}") from error
