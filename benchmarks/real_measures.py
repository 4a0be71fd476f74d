"""What benchmarks/real.py measures of a tokenizer on real pictures, as functions of tensors and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow import Tokenizer
from uniflow.core.part import build_part, part_config
from uniflow.data.images.folder import list_images
from uniflow.data.images.reading import ImageReadError, read_image
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.encoders.base import VisionEncoder
from uniflow.metrics import knn_accuracy, linear_probe

NEIGHBOURS = 5  # 20, as is usual, are more than the smallest class has
Pairs = tuple[Tensor, Tensor]  # inputs (N, C) and targets (N, D)
Labelled = tuple[Tensor, Tensor]  # features (N, D) and classes (N,)


def linear_r2(train: Pairs, test: Pairs, ridge: float = 1e-4) -> float:
    """R^2 of an affine map fitted by ridge regression on one set and scored on another.

    1 - SSE / SST, both summed over all test rows and all channels; SST is about the test rows' own mean, so painting
    that mean scores 0, and a map that is worse than it scores less. In float64.

    Args:
        train: inputs (N, C) and targets (N, D).
        test: inputs (M, C) and targets (M, D).
        ridge: penalty on the map of standardised inputs, as a share of N.

    Raises:
        ValueError: if a set is empty or its inputs and targets differ in number.
    """
    for name, (inputs, targets) in (("train", train), ("test", test)):
        if len(inputs) != len(targets) or not len(inputs):
            raise ValueError(f"R^2: the {name} set has {len(inputs)} inputs and {len(targets)} targets")
    x, y = (part.double() for part in train)
    mean, spread, centre = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-12), y.mean(dim=0)
    x = (x - mean) / spread
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ (y - centre))
    inputs, targets = (part.double() for part in test)
    residual = targets - centre - (inputs - mean) / spread @ weight
    return 1 - float(residual.square().sum() / (targets - targets.mean(dim=0)).square().sum())


def original_encoder(tokenizer: Tokenizer, weights: Path) -> VisionEncoder:
    """The frozen encoder that the tokenizer's training started from, with the weights of the file `weights`."""
    config = part_config(tokenizer.encoder)
    config["init_args"]["weights"] = str(weights)
    return build_part(config, VisionEncoder).eval().requires_grad_(False)


def normalised_tokens(encoder: VisionEncoder, images: Tensor) -> Tensor:
    """The last hidden state on the patch tokens, layer-normalised without a learned gain, as maps (B, D, h, w)."""
    features = encoder(images).feature_map().float()
    return F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)


@torch.inference_mode()
def latents_and_targets(
    tokenizer: Tokenizer, teacher: VisionEncoder, batches: Iterator[Tensor]
) -> tuple[Tensor, Tensor]:
    """Latents (N, C) and the teacher's normalised last hidden state (N, D) of every place of the latents' grid.

    Where one latent stands for several patches, the target is the mean over them.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for images in batches:
        latents = tokenizer.encode(images).float()
        target = F.adaptive_avg_pool2d(normalised_tokens(teacher, images), (latents.shape[-2], latents.shape[-1]))
        found.append((_rows(latents), _rows(target)))
    return torch.cat([latents for latents, _ in found]), torch.cat([target for _, target in found])


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def crops(folder: Path, size: int, batch_size: int = 8) -> Iterator[Tensor]:
    """The central crops of a folder's pictures, uint8 (B, 3, size, size), in the order of their names."""
    return _batches(((folder / name, CenterCrop(size)) for name in list_images(folder)), batch_size)


def random_crops(folder: Path, size: int, count: int, batch_size: int = 8) -> Iterator[Tensor]:
    """`count` crops of each of a folder's pictures, as training cuts them; the same ones at every call."""
    cut = RandomResizedCrop(size, scale=(0.2, 1.0))
    generator = torch.Generator().manual_seed(0)

    def crop(image: Tensor) -> Tensor:
        return cut(image, generator)

    return _batches(((folder / name, crop) for name in list_images(folder) for _ in range(count)), batch_size)


def _batches(pictures: Iterator[tuple[Path, Callable[[Tensor], Tensor]]], batch_size: int) -> Iterator[Tensor]:
    batch: list[Tensor] = []
    for path, crop in pictures:
        try:
            batch.append(crop(read_image(path)))
        except ImageReadError:
            continue  # `uniflow test` has named it
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


@torch.inference_mode()
def class_features(encoder: VisionEncoder, folder: Path, classes: Sequence[str], size: int) -> Labelled:
    """Mean normalised patch tokens (N, D) and classes (N,) of the pictures in `folder`/CLASS.

    Raises:
        ValueError: if there are none.
    """
    features, labels = [], []
    for number, name in enumerate(classes):
        for images in crops(folder / name, size):
            features.append(normalised_tokens(encoder, images).mean(dim=(2, 3)))
            labels += [number] * len(images)
    if not features:
        raise ValueError(f"{folder} holds no pictures in folders of their classes")
    return torch.cat(features), torch.tensor(labels)


def classify(encoder: VisionEncoder, folder: Path, size: int) -> dict[str, float]:
    """Accuracies "knn" and "probe" in [0, 1], fitted on `folder`/train/CLASS and scored on `folder`/test/CLASS."""
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    train, test = (class_features(encoder, folder / split, classes, size) for split in ("train", "test"))
    return {"knn": knn_accuracy(*train, *test, k=NEIGHBOURS), "probe": linear_probe(*train, *test)}
