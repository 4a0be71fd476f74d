"""Probes with several settings, trained in one pass; the one that is best on the validation split is tested."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from uniflow.core.numbers import Int2, NonNegativeFloat, PositiveFloat, PositiveInt
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.label import TOP, ClassificationHead
from uniflow.heads.pooling import Pool, all_tokens, available_pools, pooled_blocks, pooled_width

# Of DINOv2's linear evaluation (arXiv 2304.07193): for 256 images a step.
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
REFERENCE_BATCH = 256
UNKNOWN = -1.0  # an accuracy before the first validation


class SweepHead(ClassificationHead):
    """Base class of heads that train many candidates at once, each on the same features with its own learning rate.

    The loss is the sum over candidates, so each has the gradient that it would have alone. A candidate's learning rate
    is its own, times images a step / 256, times `optimizer.lr`: use SGD with `lr: 1.0`.

    Validation picks the candidate with the highest accuracy, of equals the one with the lowest loss. The pick and all
    accuracies are part of checkpoints. Validation images have to be held out of *train*: the data modules of this
    project share no image between splits. A test gives the accuracy of the picked candidate alone and changes nothing.

    Args:
        num_classes: number of classes.
        settings: of the candidates, each with "learning_rate", in the order of the predictions.
        weight: factor on the loss.
    """

    picked: Tensor
    val_accuracies: Tensor

    def __init__(self, num_classes: Int2, settings: Sequence[dict[str, Any]], weight: NonNegativeFloat) -> None:
        super().__init__(num_classes, weight)
        self.settings = list(settings)
        self.probes = nn.ModuleDict()
        self.register_buffer("picked", torch.tensor(-1))
        self.register_buffer("val_accuracies", torch.full((len(self.settings),), UNKNOWN))

    @abstractmethod
    def forward(self, features: EncoderOutput) -> Tensor:
        """Logits of all candidates, (candidates, B, num_classes)."""

    def lr_multiplier(self, name: str, step_images: Callable[[], int]) -> float:
        probe = name.split(".")[1]
        rate = self.settings[list(self.probes).index(probe)]["learning_rate"]
        return rate * step_images() / REFERENCE_BATCH

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return candidate_losses(prediction, batch["label"]).mean(dim=1).sum()

    def metrics(self) -> MetricCollection:
        """Right answers and losses of every candidate."""
        return MetricCollection({"candidates": CandidateSums(len(self.settings), min(TOP, self.known_classes))})

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        metrics.update(prediction, batch["label"])

    def results(self, metrics: MetricCollection, stage: Literal["val", "test"]) -> dict[str, Tensor]:
        """Accuracy of the picked candidate, in [0, 1]: "accuracy", and "top5" where there are more than five classes.

        Raises:
            ValueError: in a test, if no validation has picked one.
        """
        sums = metrics["candidates"]
        assert isinstance(sums, CandidateSums)
        # torchmetrics squeezes the state of a single candidate.
        first, among, losses = (value.reshape(-1) for value in sums.compute())
        if stage == "val":
            best = first == first.max()
            self.picked.fill_(torch.where(best, losses.nan_to_num(nan=torch.inf), torch.inf).argmin())
            self.val_accuracies.copy_(first)
        if self.picked < 0:
            raise ValueError(
                f"{type(self).__name__}: no candidate has been picked: train with a validation split first, and test "
                "a checkpoint of that run"
            )
        row = int(self.picked)
        return {"accuracy": first[row]} | ({f"top{TOP}": among[row]} if self.known_classes > TOP else {})

    def scores(self, prediction: Tensor) -> Tensor | None:
        return prediction[int(self.picked)] if self.picked >= 0 else None

    def report(self) -> dict[str, Any]:
        """The picked candidate's settings, and all candidates with their accuracy on the validation split."""
        if self.picked < 0:
            return {}
        rows = [
            {**setting, "val_accuracy": round(accuracy, 6)}
            for setting, accuracy in zip(self.settings, self.val_accuracies.tolist(), strict=True)
        ]
        return {"picked": rows[int(self.picked)], "candidates": rows}


class LinearSweepHead(SweepHead):
    """The linear probe of DINOv2 (arXiv 2304.07193, appendix B.3): learning rates x last blocks x pooling, by SGD.

    A linear layer reads the class tokens of the last n blocks side by side, without or with the mean patch token of
    the last block behind them. A source with fewer layers uses all that it has; one without prefix tokens the mean
    patch tokens of the n blocks. Settings that become equal by this are trained once.

    Args:
        spec: of the features; give the source at least as many `layers` as `blocks` asks for.
        num_classes: number of classes.
        learning_rates: for 256 images a step; scaled by the images of a step over 256.
        blocks: numbers of last blocks.
        pools: "class", "class_and_mean" or "mean", see `uniflow.heads.pooling.pooled_blocks`.
        weight: factor on the loss.

    Raises:
        ValueError: if a list is empty.
    """

    name = "linear"

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        learning_rates: Sequence[PositiveFloat] = LEARNING_RATES,
        blocks: Sequence[PositiveInt] = (1, 4),
        pools: Sequence[Pool] = ("class", "class_and_mean"),
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        for name, values in (("learning_rates", learning_rates), ("blocks", blocks), ("pools", pools)):
            if not values:
                raise ValueError(f"LinearSweepHead.{name} is empty: give at least one")
        depths = tuple(dict.fromkeys(min(count, spec.num_layers) for count in blocks))
        inputs = [(depth, pool) for depth in depths for pool in available_pools(spec, tuple(pools))]
        settings: list[dict[str, Any]] = [
            {"blocks": depth, "pool": pool, "learning_rate": rate} for depth, pool in inputs for rate in learning_rates
        ]
        super().__init__(num_classes, settings, weight)
        for number, setting in enumerate(settings):
            width = pooled_width(spec, setting["blocks"], setting["pool"])
            self.probes[f"candidate{number}"] = _linear(width, num_classes)

    def forward(self, features: EncoderOutput) -> Tensor:
        pooled: dict[tuple[int, Pool], Tensor] = {}
        logits = []
        for setting, probe in zip(self.settings, self.probes.values(), strict=True):
            key = (setting["blocks"], setting["pool"])
            if key not in pooled:
                pooled[key] = pooled_blocks(features, *key)
            logits.append(probe(pooled[key]))
        return torch.stack(logits).float()


class AttentiveProbeHead(SweepHead):
    """A learned query that attends to all tokens of the last block, and a linear layer on what it finds.

    The attentive probe of I-JEPA's and AIM's evaluations (arXiv 2301.08243, 2401.08541) with one query: it finds what
    a mean of patches hides, so it suits encoders without a trained class token. One for each learning rate.

    Args:
        spec: of the features.
        num_classes: number of classes.
        learning_rates: for 256 images a step; scaled by the images of a step over 256.
        num_heads: attention heads; must divide the features' width.
        weight: factor on the loss.

    Raises:
        ValueError: if there is no learning rate, or `num_heads` does not divide the width.
    """

    name = "attentive"

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        learning_rates: Sequence[PositiveFloat] = (0.003, 0.01, 0.03, 0.1),
        num_heads: PositiveInt = 8,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        if not learning_rates:
            raise ValueError("AttentiveProbeHead.learning_rates is empty: give at least one")
        if spec.embed_dim % num_heads:
            raise ValueError(
                f"AttentiveProbeHead.num_heads must divide the features' width {spec.embed_dim}, got {num_heads}"
            )
        super().__init__(num_classes, [{"learning_rate": rate} for rate in learning_rates], weight)
        for number in range(len(self.settings)):
            self.probes[f"candidate{number}"] = _AttentiveProbe(spec.embed_dim, num_classes, num_heads)

    def forward(self, features: EncoderOutput) -> Tensor:
        tokens = all_tokens(features)
        return torch.stack([probe(tokens) for probe in self.probes.values()]).float()


class _AttentiveProbe(nn.Module):
    """Tokens (B, N, D) -> logits (B, num_classes)."""

    def __init__(self, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.classifier = _linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        found, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        return self.classifier(self.norm(found[:, 0]))


class CandidateSums(Metric):
    """Accuracies and mean losses of candidates over everything that was fed, over all processes.

    As torchmetrics' micro accuracy of each candidate, in one state: a sweep of 52 would synchronise 52 metrics.

    Args:
        candidates: how many.
        top: an answer counts in the second accuracy if it is among the first `top`.
    """

    full_state_update = False
    right: Tensor
    among: Tensor
    losses: Tensor
    count: Tensor

    def __init__(self, candidates: int, top: int) -> None:
        super().__init__()
        self.top = top
        for state in ("right", "among"):
            self.add_state(state, torch.zeros(candidates, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("losses", torch.zeros(candidates), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Feed logits (candidates, B, C) and labels (B,)."""
        right = logits.topk(self.top, dim=2).indices == labels[None, :, None]
        self.right += (logits.argmax(dim=2) == labels).sum(dim=1)
        self.among += right.any(dim=2).sum(dim=1)
        self.losses += candidate_losses(logits, labels).sum(dim=1)
        self.count += len(labels)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Accuracy, accuracy among the first `top`, and mean loss of each candidate."""
        count = self.count.clamp_min(1)
        return self.right / count, self.among / count, self.losses / count


def candidate_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each candidate and image, (candidates, B), of logits (candidates, B, C) and labels (B,)."""
    repeated = labels.expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none").view_as(repeated)


def _linear(width: int, num_classes: int) -> nn.Linear:
    """As in DINOv2's evaluation: small weights, no bias."""
    layer = nn.Linear(width, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
