"""Classification by names alone, for encoders that were trained together with a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from uniflow.core.numbers import NonNegativeFloat
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.encoders.dual import load_dual
from uniflow.heads.label import ClassificationHead, accuracies

TEMPLATES = ("a photo of a {}.",)


class ZeroShotHead(ClassificationHead):
    """Class names -> texts -> the text tower's embeddings; the class whose embedding is nearest to the image's wins.

    The image's embedding is what the model's own pooling and projection make of the tokens of the source's last layer:
    of the teacher's tokens (`EncoderSource`) these are the model's own logits, of a student's (`TokenizerSource`) they
    say how much of the teacher is left. The texts of a class are averaged as in CLIP (arXiv 2103.00020): embeddings of
    length 1, their mean, of length 1 again.

    Nothing of it is trained or in a checkpoint, so `uniflow test` needs no fit before.

    Args:
        spec: of the features.
        model: the whole model, image and text: a folder, or its name on the hub; a CLIP, SigLIP or SigLIP 2 of
            transformers, or a model of open_clip.
        class_names: a name for each label in order, or a text file with one in each line; None takes the data
            module's, in which underscores become spaces.
        templates: texts, each with one {} for the name.
        weight: factor on the loss.

    Raises:
        ValueError: if the model cannot be read, cannot read these features, or a template has no {}.
        ImportError: if the model's library is not installed.
    """

    name = "zero_shot"

    def __init__(
        self,
        spec: FeatureSpec,
        model: str,
        class_names: list[str] | str | None = None,
        templates: Sequence[str] = TEMPLATES,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        names = _read_names(class_names) if isinstance(class_names, str) else class_names
        super().__init__(len(names) if names is not None else None, weight)
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"ZeroShotHead.templates must be texts with one {{}} for the name, got {list(templates)}")
        dual = load_dual(model)
        dual.check_spec(spec, f"ZeroShotHead.model {model}")
        self._dual = (dual,)  # in a tuple: outside of the module tree, so of checkpoints
        self.templates = tuple(templates)
        self._classes: Tensor | None = None
        if names is not None:
            self._embed(names)

    def check_data(self, data: Any) -> None:
        names = getattr(data, "class_names", None)
        if self._classes is None:
            if names is None:
                raise ValueError("ZeroShotHead: the data has no class names; set class_names")
            self._embed([name.replace("_", " ") for name in names])
        super().check_data(data)

    def forward(self, features: EncoderOutput) -> Tensor:
        """The model's logits, (B, classes)."""
        if self._classes is None:
            raise ValueError("ZeroShotHead has no class names yet: set class_names, or use it with a data module")
        dual = self._dual[0].to(features.hidden_states[-1].device)
        return dual.logits(dual.images(features), self._classes.to(features.hidden_states[-1].device)).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """Cross entropy of the softmax over classes."""
        return F.cross_entropy(prediction, batch["label"])

    def metrics(self) -> MetricCollection:
        return accuracies(self.known_classes)

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, batch["label"])

    def scores(self, prediction: Tensor) -> Tensor:
        return prediction

    def _embed(self, names: Sequence[str]) -> None:
        texts = [template.replace("{}", name) for name in names for template in self.templates]
        embeddings = self._dual[0].texts(texts).unflatten(0, (len(names), len(self.templates)))
        self._classes, self.num_classes = F.normalize(embeddings.mean(dim=1), dim=-1), len(names)


def _read_names(path: str) -> list[str]:
    if not Path(path).is_file():
        raise ValueError(f"ZeroShotHead.class_names: no such file: {path}; give a list, or a text file of names")
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
