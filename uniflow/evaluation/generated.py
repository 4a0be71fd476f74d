"""How good generated images are: their features against those of real images, and a classifier's answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.evaluation.chosen import with_classes
from uniflow.metrics import (
    FeatureExtractor,
    frechet_distance,
    image_digests,
    inception_score,
    kid,
    linear_probe,
    moments,
    precision_recall,
)
from uniflow.metrics.distribution import NEIGHBOURS, SPLITS


class ImageSet:
    """Features and class logits of a set of images, fed batch by batch, and a hash of their pixels.

    Args:
        extractor: of the features.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._digests: list[str] = []

    def update(self, images: Tensor) -> None:
        """Add images (B, 3, H, W) in [0, 1]."""
        features, logits = self.extractor.with_logits(images)
        self._features.append(features.cpu())
        if logits is not None:
            self._logits.append(logits.cpu())
        self._digests += image_digests(images)

    def gather(self) -> Gathered:
        """What all processes were fed, which all have to call this."""
        logits, digests = gather_lists(self._logits), gather_lists(self._digests)
        return Gathered(torch.cat(gather_lists(self._features)), torch.cat(logits) if logits else None, digests)


class Gathered:
    """Features (N, D) of a set of images, class logits (N, K) if the extractor has classes, and the images' digests."""

    def __init__(self, features: Tensor, logits: Tensor | None, digests: Sequence[str]) -> None:
        self.features, self.logits = features, logits
        self._digests = digests

    @property
    def contents(self) -> str:
        """12 hex digits of the pixels of all images, whatever their order."""
        return hashlib.sha256("".join(sorted(self._digests)).encode()).hexdigest()[:12]


class GeneratedImages:
    """Collects real test images, and images generated for the same conditions.

    Args:
        extractor: of the features that are compared.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._sets: dict[str, ImageSet] = {}
        self._labels: list[Tensor] = []

    def update(self, images: Mapping[str, Tensor], labels: Tensor | None) -> None:
        """Feed a batch: images (B, 3, H, W) in [0, 1] by name, the same names in each batch, and classes (B,)."""
        for name, batch in images.items():
            self._sets.setdefault(name, ImageSet(self.extractor)).update(batch)
        if labels is not None:
            self._labels.append(labels.cpu())

    def gather(self) -> tuple[dict[str, Gathered], Tensor | None]:
        """The sets by name, and classes (N,), of all processes, which all have to call this."""
        labels = gather_lists(self._labels)
        return {name: images.gather() for name, images in self._sets.items()}, torch.cat(labels) if labels else None


def compare_sets(generated: Gathered, real: Gathered, name: str) -> dict[str, float]:
    """Numbers of generated images against real ones, by the features called `name`.

    Returns:
        `frechet_NAME`, `kid_NAME`; with more than 3 images of each `precision_NAME` and `recall_NAME`; and with at
        least 10 generated images `inception_score`, if the extractor has classes.
    """
    numbers = {
        f"frechet_{name}": frechet_distance(*moments(generated.features), *moments(real.features)),
        f"kid_{name}": kid(generated.features, real.features),
    }
    if min(len(generated.features), len(real.features)) > NEIGHBOURS:
        found = precision_recall(generated.features, real.features)
        numbers |= dict(zip((f"precision_{name}", f"recall_{name}"), found, strict=True))
    if generated.logits is not None and len(generated.logits) >= SPLITS:
        numbers["inception_score"] = inception_score(generated.logits)
    return numbers


def judge_generated(
    sets: Mapping[str, Gathered], labels: Tensor | None, held_out: Mapping[str, Tensor], name: str
) -> dict[str, float]:
    """Numbers of generated images.

    Args:
        sets: "real" images, and generated ones by the suffix of their metrics.
        labels: classes (N,) that they have, or were to have; None without classes.
        held_out: further real images: "features" (M, D) and "label" (M,), -1 without a class, for the floor and the
            classifier.
        name: of the features, in the metrics' names.

    Returns:
        What `compare_sets` gives, with the suffix; `frechet_NAME_floor`, that of the held out real images; with classes
        `accuracy`, the share of generated images that a classifier, fitted on the held out images, finds to be of their
        class, and `accuracy_real`, the same of real ones.
    """
    real = sets["real"]
    numbers: dict[str, float] = {}
    known = with_classes(dict(held_out)) if "features" in held_out else {}
    has_classes = labels is not None and known and len(known["label"]) > 0
    if "features" in held_out:
        floor = frechet_distance(*moments(held_out["features"]), *moments(real.features))
        numbers[f"frechet_{name}_floor"] = floor
    for suffix, images in sets.items():
        if suffix != "real":
            compared = compare_sets(images, real, name)
            numbers |= {f"{metric}{suffix}": value for metric, value in compared.items()}
        if has_classes:
            assert labels is not None
            accuracy = linear_probe(known["features"], known["label"], images.features, labels)
            numbers[f"accuracy{'_real' if suffix == 'real' else suffix}"] = accuracy
    return numbers
