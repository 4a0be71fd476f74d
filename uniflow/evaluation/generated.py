"""How good generated images are: their features against those of real images, and a classifier's answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.evaluation.chosen import with_classes
from uniflow.metrics import FeatureExtractor, frechet_distance, kid, linear_probe, moments


class GeneratedImages:
    """Collects the features of real test images and of images generated for the same conditions.

    Args:
        extractor: of the features.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._rows: dict[str, list[Tensor]] = {}
        self._labels: list[Tensor] = []

    def update(self, images: Mapping[str, Tensor], labels: Tensor | None) -> None:
        """Feed a batch: images (B, 3, H, W) in [0, 1] by name, the same names in each batch, and classes (B,)."""
        for name, batch in images.items():
            self._rows.setdefault(name, []).append(self.extractor(batch).cpu())
        if labels is not None:
            self._labels.append(labels.cpu())

    def gather(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Features (N, D) by name, and classes (N,), of all processes, which all have to call this."""
        features = {name: torch.cat(gather_lists(rows)) for name, rows in self._rows.items()}
        labels = gather_lists(self._labels)
        return features, torch.cat(labels) if labels else None


def judge_generated(
    features: Mapping[str, Tensor], labels: Tensor | None, held_out: Mapping[str, Tensor], name: str
) -> dict[str, float]:
    """Numbers of generated images.

    Args:
        features: (N, D) of "real" images, and of generated ones by the suffix of their metrics.
        labels: classes (N,) that they have, or were to have; None without classes.
        held_out: further real images: "features" (M, D) and "label" (M,), -1 without a class, for the floor and the
            classifier.
        name: of the features, in the metrics' names.

    Returns:
        `frechet_NAME` and `kid_NAME` against the real images, with the suffix; `frechet_NAME_floor`, that of the held
        out real images; with classes `accuracy`, the share of generated images that a classifier, fitted on the held
        out images, finds to be of their class, and `accuracy_real`, the same of real ones.
    """
    real = moments(features["real"])
    numbers: dict[str, float] = {}
    known = with_classes(dict(held_out)) if "features" in held_out else {}
    has_classes = labels is not None and known and len(known["label"]) > 0
    if "features" in held_out:
        numbers[f"frechet_{name}_floor"] = frechet_distance(*moments(held_out["features"]), *real)
    for suffix, rows in features.items():
        ending = "_real" if suffix == "real" else suffix
        if suffix != "real":
            numbers[f"frechet_{name}{suffix}"] = frechet_distance(*moments(rows), *real)
            numbers[f"kid_{name}{suffix}"] = kid(rows, features["real"])
        if has_classes:
            assert labels is not None
            accuracy = linear_probe(known["features"], known["label"], rows, labels)
            numbers[f"accuracy{ending}"] = accuracy
    return numbers
