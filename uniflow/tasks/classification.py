"""Classification of images from the features of any source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from uniflow.core.numbers import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput
from uniflow.evaluation.probing import train_features
from uniflow.features import FeatureSource
from uniflow.heads.fitted import FittedClassifiers
from uniflow.heads.label import ClassificationHead
from uniflow.heads.pooling import available_pools, pooled_blocks
from uniflow.pictures.words import with_words
from uniflow.tasks.features import FeatureTask, HeadFactory, exact_features
from uniflow.training.trainer import data_of, is_dry_run


class ClassificationTask(FeatureTask):
    """Which class an image has ("label", int64 (B,)), by heads that are trained, fitted, or know the classes' names.

    `val/accuracy` and `test/accuracy` are those of the first head, `val/NAME_accuracy` of further ones; with more than
    five classes there is `top5` beside each. `uniflow test` adds k-NN (`test/knn_10` and so on) and logistic regression
    (`test/logistic`), which are fitted on the training images without augmentation, and scored on all test images.

    Heads to choose from: `LinearSweepHead`, `AttentiveProbeHead`, `ZeroShotHead`, `LabelHead`.

    Args:
        source: makes the source of the features.
        heads: make the heads, each from the spec of the features; one at least is a `ClassificationHead`.
        tune_source: whether the source is trained too, see `FeatureTask`.
        neighbours: numbers k of nearest neighbours, by cosine (arXiv 2104.14294); with fewer training images all vote.
            Empty leaves k-NN out.
        temperature: of the neighbours' votes, exp(cosine / temperature).
        logistic_l2: penalty on the squared weights of logistic regression on standardised features; null leaves it
            out.
        pool: the vector that both read of the last layer: the class token (of a source that has none, the mean patch
            token), or the mean patch token; layer-normalised.
        fit_images: how many training images both are fitted on at most; equal images count once.
        probe_images: see `FeatureTask`; its `test/knn` and `test/probe` are fitted on the validation split, and off.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.

    Raises:
        ValueError: if no head classifies images, or a number is out of range.
    """

    monitor = ("val/accuracy", "max")

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        heads: Sequence[HeadFactory],
        tune_source: bool = False,
        neighbours: Sequence[PositiveInt] = (10, 20, 100, 200),
        temperature: PositiveFloat = 0.07,
        logistic_l2: NonNegativeFloat | None = 1e-3,
        pool: Literal["class", "mean"] = "class",
        fit_images: PositiveInt = 50_000,
        probe_images: NonNegativeInt = 0,
        **task: Any,
    ) -> None:
        super().__init__(source, heads, tune_source, probe_images, **task)
        self.neighbours, self.temperature, self.logistic_l2 = tuple(neighbours), temperature, logistic_l2
        self.pool, self.fit_images = pool, fit_images
        self._fitted: FittedClassifiers | None = None

    def build(self) -> None:
        super().build()
        self.classifier  # noqa: B018  # refused now, not after an epoch

    @property
    def classifier(self) -> ClassificationHead:
        """The first head that classifies images."""
        for _, head in self.named_heads():
            if isinstance(head, ClassificationHead):
                return head
        raise ValueError("ClassificationTask.heads: none of them classifies images; add LinearSweepHead or another")

    def vectors(self, features: EncoderOutput) -> Tensor:
        """What k-NN and logistic regression read, (B, D), float32 at least."""
        [pool] = available_pools(self.source.spec, (self.pool,))
        return pooled_blocks(exact_features(features), 1, pool)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._fitted = None
        if is_dry_run(self.trainer) or not (self.neighbours or self.logistic_l2 is not None):
            return
        known = train_features(
            self.trainer, lambda batch: {"features": self.vectors(self.features(batch["image"]))}, self.fit_images
        )
        # Votes are counted in float64, which Apple's GPUs do not have.
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        features, labels = known["features"].to(device), known["label"].to(device)
        settings = (self.classifier.known_classes, self.neighbours, self.temperature, self.logistic_l2)
        self._fitted = FittedClassifiers(features, labels, *settings)

    def evaluated(self, features: EncoderOutput, batch: dict[str, Any], stage: Literal["val", "test"]) -> None:
        if stage == "test" and self._fitted is not None:
            self._fitted.update(self.vectors(features), batch["label"])

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self._fitted is not None:
            for name, value in self._fitted.compute().items():
                self.log(f"test/{name}", value, rank_zero_only=True)
            self._fitted = None

    def image_rows(self, batch: dict[str, Any], count: int) -> dict[str, Tensor]:
        """Images over the name of their class, and over the first head's answer: green if right, else red."""
        images, labels = batch["image"][:count], batch["label"][:count].tolist()
        head = self.classifier
        scores = head.scores(head(exact_features(self.features(images))))
        pixels = to_unit_range(images).float()
        rows = {"class": with_words(pixels, [self._name(label) for label in labels])}
        if scores is not None:
            answers = scores.argmax(dim=1).tolist()
            colors = ["darkgreen" if a == label else "darkred" for a, label in zip(answers, labels, strict=True)]
            rows["answer"] = with_words(pixels, [self._name(answer) for answer in answers], colors)
        return rows

    def _name(self, label: int) -> str:
        names = getattr(data_of(self.trainer), "class_names", None) or []
        return str(names[label]) if 0 <= label < len(names) else f"class {label}"
