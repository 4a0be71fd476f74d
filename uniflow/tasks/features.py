"""Tasks on features: a source, frozen or trained, and one or more heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torchmetrics import MetricCollection

from uniflow.core.numbers import NonNegativeInt
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.evaluation.chosen import ChosenImages, image_keys, with_classes
from uniflow.evaluation.probing import classify, pooled, validation_features
from uniflow.features import FeatureSource
from uniflow.heads import Head
from uniflow.layers.cpu import fuse_attention
from uniflow.layers.precision import full_precision, without_autocast
from uniflow.metrics import Averages
from uniflow.tasks.base import Stage, Task
from uniflow.training.trainer import data_of, is_dry_run, step_images

HeadFactory = Callable[[FeatureSpec], Head]


class FeatureTask(Task):
    """Trains heads on the features of one source; the loss is the sum of the heads' weighted losses.

    A frozen source is outside the module tree: neither the optimizer nor checkpoints hold it, and it runs in
    evaluation mode without gradients. Logs `train/NAME`, `val/NAME` and `test/NAME` for the loss of each head, and the
    heads' metrics as `val/METRIC` and `test/METRIC`. Of two heads of a kind the second is called NAME_2, and its
    metrics are `val/NAME_2_METRIC`; of heads of two kinds with a metric of one name, the second's is `val/NAME_METRIC`.

    Batches are dicts with "image" (B, 3, H, W), uint8 or float in [0, 1], and what the heads need.

    Args:
        source: makes the source of the features.
        heads: make the heads, each from the spec of the features.
        tune_source: whether the source is trained too, as far as its parameters require gradients (see an encoder's
            `tune`).
        probe_images: how many images of each split the k-NN and the linear probe of `uniflow test` use at most, where
            images have a class ("label"); 0 switches them off.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.

    Raises:
        ValueError: if there are no heads, or a number is negative.
    """

    source: FeatureSource

    def __init__(
        self,
        source: Callable[[], FeatureSource],
        heads: Sequence[HeadFactory],
        tune_source: bool = False,
        probe_images: NonNegativeInt = 10_000,
        **task: Any,
    ) -> None:
        super().__init__(**task)
        if not heads:
            raise ValueError(f"{type(self).__name__}.heads is empty: give at least one head")
        self._make_source, self._make_heads = source, list(heads)
        self.tune_source = tune_source
        self._averages = Averages()
        self._metrics: dict[str, MetricCollection] = {}
        self._probed = ChosenImages(probe_images)
        self.probe_images = probe_images

    def build(self) -> None:
        source = self._make_source()
        if self.tune_source:
            self.source = source
        else:
            object.__setattr__(self, "source", source.requires_grad_(False).eval())
        self.build_heads(source.spec)

    def build_heads(self, spec: FeatureSpec) -> None:
        """Make the heads, by name."""
        self.heads = nn.ModuleDict()
        for make in self._make_heads:
            head = make(spec)
            same = sum(type(other) is type(head) or other.name == head.name for other in self.heads.values())
            self.heads[head.name if not same else f"{head.name}_{same + 1}"] = head

    @property
    def backbone(self) -> nn.Module:
        """The network that gives the features."""
        return self.source

    def parts(self) -> Iterator[nn.Module]:
        yield self.backbone
        yield from self.heads.values()

    def features(self, images: Tensor) -> EncoderOutput:
        """What the heads read of images (B, 3, H, W)."""
        if self.tune_source:
            return self.backbone(images)
        self.backbone.eval()
        with torch.no_grad():
            return self.backbone(images)

    def on_fit_start(self) -> None:
        self._check_data()
        self._source_to_device()
        plugin = self.trainer.precision_plugin
        if self.device.type == "cpu" and isinstance(plugin, MixedPrecision) and plugin.precision == "bf16-mixed":
            fuse_attention(self.backbone, False)  # written out it is faster there

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.log_losses(self.losses(self.features(batch["image"]), batch))

    def log_losses(self, losses: dict[str, Tensor]) -> Tensor:
        """Log the losses of a training step by name, and return their sum."""
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        return total

    def losses(self, features: EncoderOutput, batch: dict[str, Any], labelled: bool = True) -> dict[str, Tensor]:
        """Weighted loss of each head, or its parts; without labels, of those heads that need none."""
        losses: dict[str, Tensor] = {}
        for name, head in self.named_heads(labelled):
            # Losses are computed in float32 whatever the precision of the source's pass is.
            with self.head_precision():
                parts = head.losses(head(exact_features(features)), batch)
            losses |= {f"{name}_{part}" if part else name: head.weight * loss for part, loss in parts.items()}
        return losses

    def head_precision(self) -> AbstractContextManager[Any]:
        """Around the heads and their losses: float32, whatever the precision of training is."""
        return without_autocast(self.device)

    def named_heads(self, labelled: bool = True) -> list[tuple[str, Head]]:
        """The heads by name; without labels, those that need none."""
        heads = [(name, head) for name, head in self.heads.items() if isinstance(head, Head)]
        return [(name, head) for name, head in heads if labelled or not head.labels]

    def on_test_start(self) -> None:
        self._check_data()

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()
        self._probed = ChosenImages(0 if is_dry_run(self.trainer) else self.probe_images)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        features = self._evaluate(batch, "test")
        if self._probed.limit:
            self._probed.update(image_keys(batch), {"features": pooled(features)})

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
        scored_on = with_classes(self._probed.gather())
        if not len(scored_on["label"]):
            return
        fitted_on = validation_features(
            self.trainer, lambda batch: {"features": pooled(self.features(batch["image"]))}, self.probe_images
        )
        if "features" in fitted_on:
            for classifier, accuracies in classify(fitted_on, scored_on).items():
                self.log(f"test/{classifier}", accuracies["features"], rank_zero_only=True)

    def report(self) -> dict[str, Any]:
        return {f"{name}/{key}": value for name, head in self.named_heads() for key, value in head.report().items()}

    def lr_multiplier(self, name: str) -> float:
        room, _, rest = name.partition(".")
        if room != "heads":
            return super().lr_multiplier(name)
        key, _, parameter = rest.partition(".")
        return dict(self.named_heads())[key].lr_multiplier(parameter, lambda: step_images(self._trainer))

    def stages(self, images: Tensor) -> Iterator[Stage]:
        batch, results = self.example_batch(images), {}

        def extract() -> None:
            results["features"] = exact_features(self.features(batch["image"]))

        yield Stage("source", [self.backbone], extract, in_graph=self.tune_source)
        for name, head in self.named_heads():
            yield Stage(name, [head], lambda head=head: head(results["features"]))  # type: ignore[misc]

    def _check_data(self) -> None:
        for _, head in self.named_heads():
            head.check_data(data_of(self.trainer))

    def _source_to_device(self) -> None:
        if not self.tune_source:
            self.backbone.to(self.device)

    def _start_evaluation(self) -> None:
        self._source_to_device()
        self._metrics = {name: head.metrics().to(self.device) for name, head in self.named_heads()}

    def _evaluate(self, batch: dict[str, Any], stage: Literal["val", "test"]) -> EncoderOutput:
        features = self.features(batch["image"])
        inputs = exact_features(features)
        for name, head in self.named_heads():
            with self.head_precision():
                prediction = head(inputs)
                loss = head.weight * head.loss(prediction, batch)
                head.update_metrics(self._metrics[name], prediction, batch)
            self._averages.update(f"{stage}/{name}", loss, count=len(batch["image"]))
        self.evaluated(features, batch, stage)
        return features

    def evaluated(self, features: EncoderOutput, batch: dict[str, Any], stage: Literal["val", "test"]) -> None:
        """Called with the features of each batch that the heads were evaluated on; nothing by default."""

    def _log_evaluation(self, stage: Literal["val", "test"]) -> None:
        for name, value in self._averages.compute().items():
            self.log(name, value, rank_zero_only=True)
        taken: set[str] = set()
        for name, head in self.named_heads():
            for metric, result in head.results(self._metrics.pop(name), stage).items():
                full = metric if name == head.name and metric not in taken else f"{name}_{metric}"
                taken.add(full)
                self.log(f"{stage}/{full}", float(result), rank_zero_only=True)


def exact_features(features: EncoderOutput) -> EncoderOutput:
    """What heads read, in float32 at least."""
    states, prefixes = (
        tuple(full_precision(tensor) for tensor in part) for part in (features.hidden_states, features.prefix_tokens)
    )
    return EncoderOutput(states, prefixes, features.grid)
