"""Classification at test time: k-NN and linear probe of frozen features, fitted on one split and scored on another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from uniflow.core.specs import EncoderOutput
from uniflow.evaluation.chosen import ChosenImages, image_keys, with_classes
from uniflow.layers.precision import full_precision
from uniflow.metrics import knn_accuracy, linear_probe
from uniflow.training.trainer import data_of, has_split

CLASSIFIERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], float]] = {
    "knn": knn_accuracy,
    "probe": linear_probe,
}


def pooled(output: EncoderOutput) -> Tensor:
    """Mean patch token of the last layer, (B, D), float32 at least."""
    return full_precision(output.hidden_states[-1]).mean(dim=1)


def validation_features(
    trainer: Trainer,
    features_of: Callable[[dict[str, Any]], Mapping[str, Tensor]],
    limit: int,
    only_classes: bool = True,
) -> dict[str, Tensor]:
    """Features and classes of the validation split's images, to fit classifiers on; by all processes.

    Args:
        trainer: in a test run.
        features_of: batch on the device -> features (B, D) by name.
        limit: how many images at most, over all processes.
        only_classes: leave out images that have no class.

    Returns:
        As `ChosenImages.gather` gives them; without features if there are none.
    """
    data = data_of(trainer)
    loaders: Any = []
    if has_split(data, "val"):
        data.setup("validate")  # a test run may have set up the test split only
        loaders = data.val_dataloader()
    chosen = _collect(trainer, loaders, features_of, limit)
    return with_classes(chosen) if only_classes else chosen


def train_features(
    trainer: Trainer, features_of: Callable[[dict[str, Any]], Mapping[str, Tensor]], limit: int
) -> dict[str, Tensor]:
    """As `validation_features`, of the training images, each once and without augmentation.

    Raises:
        ValueError: if the data module has no `plain_train_dataloader`, or no training image has a class.
    """
    data = data_of(trainer)
    if not hasattr(data, "plain_train_dataloader"):
        raise ValueError(
            f"k-NN and logistic regression are fitted on the training images without augmentation, which "
            f"{type(data).__name__} does not give (`plain_train_dataloader`); set neighbours to [] and logistic_l2 to "
            "null to leave them out"
        )
    found = with_classes(_collect(trainer, data.plain_train_dataloader(), features_of, limit))
    if not len(found["label"]):
        raise ValueError("k-NN and logistic regression: no training image has a class (an integer `label` from 0)")
    return found


@torch.no_grad()
def _collect(
    trainer: Trainer, loaders: Any, features_of: Callable[[dict[str, Any]], Mapping[str, Tensor]], limit: int
) -> dict[str, Tensor]:
    chosen = ChosenImages(limit)
    for batch in _batches(loaders):
        batch = {**batch, "image": batch["image"].to(trainer.strategy.root_device)}
        with trainer.precision_plugin.forward_context():
            features = features_of(batch)
        chosen.update(image_keys(batch), features)
    return chosen.gather()


def classify(
    fitted_on: Mapping[str, Tensor], scored_on: Mapping[str, Tensor], classifiers: Iterable[str] = tuple(CLASSIFIERS)
) -> dict[str, dict[str, float]]:
    """Accuracy in [0, 1] of each classifier on each feature: classifier -> feature -> accuracy.

    Args:
        fitted_on: features (N, D) by name, and "label" (N,).
        scored_on: the same names, (M, D) and (M,).
        classifiers: names in `CLASSIFIERS`.
    """
    names = [name for name in scored_on if name != "label"]
    return {
        classifier: {
            name: CLASSIFIERS[classifier](fitted_on[name], fitted_on["label"], scored_on[name], scored_on["label"])
            for name in names
        }
        for classifier in classifiers
    }


def _batches(loaders: Any) -> Iterable[dict[str, Any]]:
    return chain.from_iterable(loaders if isinstance(loaders, list | tuple) else [loaders])
