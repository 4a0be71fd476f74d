"""The evaluation protocol: which numbers, of which images, under which settings; and a fingerprint of all that."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.core.numbers import CheckedNumbers, NonNegativeInt
from uniflow.metrics.distribution import cmmd, frechet_distance, kid, moments
from uniflow.metrics.features import EncoderFeatures, FeatureExtractor
from uniflow.metrics.perceptual import LPIPS
from uniflow.metrics.reconstruction import legacy_ssim, ms_ssim, psnr, ssim
from uniflow.metrics.slices import image_statistics, metric_names

FORMAT = 1  # raised when a metric's definition changes, so that fingerprints do
ImageMetric = Literal["psnr", "ssim", "legacy_ssim", "ms_ssim"]
SetMetric = Literal["frechet", "kid", "cmmd"]
IMAGE_METRICS = {"psnr": psnr, "ssim": ssim, "legacy_ssim": legacy_ssim, "ms_ssim": ms_ssim}


class ReconstructionProtocol(CheckedNumbers):
    """How reconstructions are judged, online (validation in fit) and offline (`uniflow test`, `uniflow evaluate`).

    Args:
        images: metrics of single images. "legacy_ssim" takes 2 as the range of [0, 1] images, as several published
            tokenizers did: for comparison with their tables only.
        sets: metrics of the whole set of reconstructions against the whole set of originals, for each of `features`.
            They are computed in tests, not in validation.
        features: what set metrics compare by; the embedded encoder if none is given.
        lpips: LPIPS as a further metric of single images.
        noise_seed: of the noise that flow decoders start from; the noise of an image does not depend on its batch.

    Raises:
        ValueError: for an unknown metric.
    """

    def __init__(
        self,
        images: Sequence[ImageMetric] = ("psnr", "ssim"),
        sets: Sequence[SetMetric] = ("frechet",),
        features: Sequence[FeatureExtractor] | None = None,
        lpips: LPIPS | None = None,
        noise_seed: NonNegativeInt = 0,
    ) -> None:
        for kind, names, known in (("images", images, ImageMetric), ("sets", sets, SetMetric)):
            if unknown := [name for name in names if name not in get_args(known)]:
                raise ValueError(f"protocol.{kind}: no metric {unknown[0]!r}; known: {', '.join(get_args(known))}")
        features = [EncoderFeatures()] if features is None else features
        if len({extractor.name for extractor in features}) < len(features):
            raise ValueError(f"protocol.features: names must differ, got {[e.name for e in features]}")
        self.images, self.sets = tuple(images), tuple(sets)
        self.features, self.lpips = tuple(features), lpips
        self.noise_seed = noise_seed

    def of_images(self, reconstruction: Tensor, original: Tensor) -> dict[str, Tensor]:
        """Each metric of single images: (B,) for images (B, 3, H, W) in [0, 1]."""
        values = {name: IMAGE_METRICS[name](reconstruction, original) for name in self.images}
        return values | ({"lpips": self.lpips(reconstruction, original)} if self.lpips else {})

    def settings(self) -> dict[str, Any]:
        """What this protocol computes, ready for JSON."""
        return {
            "format": FORMAT,
            "images": [*self.images, *(["lpips " + self.lpips.identity()] if self.lpips else [])],
            "noise_seed": self.noise_seed,
            "sets": list(self.sets),
            "features": [extractor.identity() for extractor in self.features] if self.sets else [],
            # Up to November 2026 the cross term had each image's own reconstruction in it. Other numbers are as before.
            **({"kernel_distances": "pairs"} if {"kid", "cmmd"} & set(self.sets) else {}),
        }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """12 hex digits that differ as soon as any setting does."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Evaluation:
    """One evaluation of reconstructions: fed batch by batch, then asked for its numbers.

    The numbers depend on the images alone: not on batch size, order or number of processes. Sums are float64.

    Args:
        protocol: what to compute.
        with_sets: whether to compute what tests have and validation has not: metrics of sets, and the originals'
            statistics by which `slice_means` slices.
    """

    def __init__(self, protocol: ReconstructionProtocol, with_sets: bool = True) -> None:
        self.protocol = protocol
        self.rows: list[dict[str, Any]] = []
        self._digests: list[str] = []
        self._sets = protocol.sets if with_sets else ()
        self._with_statistics = with_sets
        self._originals = _FeatureSet(protocol.features if self._sets else ())
        self._reconstructions: dict[str, _FeatureSet] = {}

    def add_originals(self, originals: Tensor, digests: Sequence[str], names: Sequence[str] | None = None) -> None:
        """Begin a batch.

        Args:
            originals: (B, 3, H, W) in [0, 1].
            digests: `image_digests` of the batch.
            names: file names or the like; the digests stand in for them.
        """
        self._start = len(self.rows)
        self._batch = originals
        self.rows += [{"image": name} for name in (names or digests)]
        self._digests += digests
        self._originals.update(originals)
        if self._with_statistics:
            for name, values in image_statistics(originals).items():
                self.add_values(name, values)

    def add(self, reconstruction: Tensor, suffix: str = "") -> None:
        """Judge one way of decoding the batch: (B, 3, H, W) in [0, 1]; `suffix` tells ways apart in metrics' names."""
        for name, values in self.protocol.of_images(reconstruction, self._batch).items():
            self.add_values(name + suffix, values)
        if self._sets:
            self._reconstructions.setdefault(suffix, _FeatureSet(self.protocol.features)).update(reconstruction)

    def add_values(self, name: str, values: Tensor) -> None:
        """Any other number of each image of the batch, (B,)."""
        for row, value in zip(self.rows[self._start :], values.detach().cpu().double().tolist(), strict=True):
            row[name] = value

    def compute(self) -> dict[str, float]:
        """Means of the metrics of single images, and the metrics of sets; over all processes, which all have to call.

        Afterwards `rows` holds one dict an image, of all processes, sorted by name, and `contents` a hash of all the
        originals' pixels.
        """
        gathered = gather_lists([{"digest": d, **row} for d, row in zip(self._digests, self.rows, strict=True)])
        # Sorted, so that sums do not depend on who saw which image when.
        gathered.sort(key=lambda row: (row["image"], row["digest"]))
        self.contents = hashlib.sha256("".join(sorted(row["digest"] for row in gathered)).encode()).hexdigest()[:12]
        self.rows = [{key: value for key, value in row.items() if key != "digest"} for row in gathered]
        results = {}
        for name in metric_names(self.rows):
            values = torch.tensor([row[name] for row in self.rows if name in row], dtype=torch.float64)
            results[name] = float(values.mean())
        return results | self._compare_sets()

    def settings(self, **more: Any) -> dict[str, Any]:
        """Everything that the numbers depend on besides the model; call after `compute`."""
        return {**self.protocol.settings(), "num_images": len(self.rows), "contents": self.contents, **more}

    def _compare_sets(self) -> dict[str, float]:
        results: dict[str, float] = {}
        originals = self._originals.gather()
        for suffix, reconstructions in self._reconstructions.items():
            decoded = reconstructions.gather()
            if len(self.rows) < 2:  # one image has no spread
                continue
            for metric, name in itertools.product(self._sets, decoded):
                results[f"{metric}_{name}{suffix}"] = _compare(metric, originals[name], decoded[name])
        return results


class _FeatureSet:
    """The features of a set of images, by extractor."""

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        self.extractors = extractors
        self.batches: dict[str, list[Tensor]] = {extractor.name: [] for extractor in extractors}

    def update(self, images: Tensor) -> None:
        for extractor in self.extractors:
            self.batches[extractor.name].append(extractor(images).cpu())

    def gather(self) -> dict[str, Tensor]:
        """All processes' features (N, D)."""
        gathered = {name: gather_lists(batches) for name, batches in self.batches.items()}
        return {name: torch.cat(batches) for name, batches in gathered.items() if batches}


def _compare(metric: SetMetric, originals: Tensor, decoded: Tensor) -> float:
    if metric == "frechet":
        return frechet_distance(*moments(originals), *moments(decoded))
    return (kid if metric == "kid" else cmmd)(originals, decoded, paired=True)
