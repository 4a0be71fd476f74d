"""Heads that need no labels: the image itself read from early layers, and the hidden states of a trained encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio

from uniflow.core.numbers import NonNegativeFloat, PositiveInt
from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.distill.teacher import FrozenTeacher
from uniflow.encoders.base import VisionEncoder
from uniflow.heads.base import Head
from uniflow.layers.cpu import fuse_attention


class PatchHead(Head):
    """The pixels of each patch, read linearly from its token at some layers: logarithm of the mean squared error.

    It makes early layers keep the image. The logarithm presses on until the image is there, whatever its contrast:
    1 dB counts the same at 20 as at 30 dB.

    Args:
        spec: of the features.
        layers: numbers of the blocks whose output is read, from 1.
        rank: values that a token's pixels are read through; null reads them directly.
        weight: factor on the loss, which is the mean over layers.

    Raises:
        ValueError: if there is no such layer, or the rank is not positive.
    """

    name = "patch"

    def __init__(
        self,
        spec: FeatureSpec,
        layers: Sequence[PositiveInt] = (1,),
        rank: PositiveInt | None = 64,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(weight)
        check_layers(self, layers, spec.num_layers)
        self.layers, self.patch_size = tuple(layers), spec.patch_size
        self.read = nn.ModuleList(_linear(spec.embed_dim, rank, 3 * spec.patch_size**2) for _ in layers)

    def forward(self, features: EncoderOutput) -> Tensor:
        """Pixels in [0, 1], layers first: (layers, B, N, 3 * patch_size ** 2)."""
        states = (features.hidden_states[layer - 1] for layer in self.layers)
        return torch.stack([read(state) for read, state in zip(self.read, states, strict=True)]).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return self._errors(prediction, batch).log().mean()

    def metrics(self) -> MetricCollection:
        """Peak signal-to-noise ratio at each layer in dB, of the mean squared error of all images."""
        metrics: dict[str, Metric | MetricCollection] = {
            f"patch_psnr_{layer}": PeakSignalNoiseRatio(data_range=1.0) for layer in self.layers
        }
        return MetricCollection(metrics, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        target = self._target(batch)
        for layer, pixels in zip(self.layers, prediction, strict=True):
            metrics[f"patch_psnr_{layer}"].update(pixels, target)

    def _target(self, batch: dict[str, Any]) -> Tensor:
        """The pixels of each patch in [0, 1], (B, N, 3 * patch_size ** 2)."""
        return F.unfold(to_unit_range(batch["image"]), self.patch_size, stride=self.patch_size).transpose(1, 2)

    def _errors(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return (prediction - self._target(batch)).square().mean(dim=(1, 2, 3)).clamp_min(1e-8)


class TeacherHead(Head):
    """The tokens of a trained encoder at each of its layers, read linearly from the same layer of the new encoder.

    Prefix tokens belong to them. The linear maps start as the identity, and leave the encoder room for what the teacher
    does not have. The loss of a layer is the mean squared error over the variance of the teacher's tokens.

    The teacher is in no checkpoint and is not trained.

    Args:
        spec: of the features.
        teacher: makes the trained encoder, with its weights; of the same width, depth, patch size and prefix tokens.
        weight: factor on the loss, which is the mean over layers.

    Raises:
        ValueError: if the teacher's sizes are not those of the encoder.
    """

    name = "teacher"

    def __init__(self, spec: FeatureSpec, teacher: Callable[[], VisionEncoder], weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        made = teacher()
        for size in ("embed_dim", "num_layers", "patch_size", "num_prefix_tokens"):
            given, needed = getattr(made.spec, size), getattr(spec, size)
            if given != needed:
                raise ValueError(f"TeacherHead: the teacher's {size} is {given}, the encoder's is {needed}")
        fuse_attention(made, False)  # in bfloat16, as `targets` computes, it is faster on CPUs when written out
        self._teacher = (FrozenTeacher(made),)  # in a tuple: outside of the module tree, so of checkpoints
        self.maps = nn.ModuleList(_identity(spec.embed_dim) for _ in range(spec.num_layers))

    def forward(self, features: EncoderOutput) -> Tensor:
        """The teacher's tokens, prefix first, layers first: (L, B, P + N, D)."""
        return torch.stack([read(token) for read, token in zip(self.maps, _tokens(features), strict=True)]).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return self._errors(prediction, batch).mean()

    def metrics(self) -> MetricCollection:
        """Share of the variance of the teacher's tokens that is missed, at its first and its last layer."""
        return MetricCollection({"teacher_first": MeanMetric(), "teacher_last": MeanMetric()}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Any]) -> None:
        errors = self._errors(prediction, batch)
        for name, error in (("teacher_first", errors[0]), ("teacher_last", errors[-1])):
            metrics[name].update(error, weight=len(batch["image"]))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's tokens of images (B, 3, H, W): (L, B, P + N, D), computed in bfloat16, given in float32."""
        teacher = self._teacher[0].to(images.device)
        with torch.autocast(images.device.type, torch.bfloat16):
            output = teacher(images)
        return torch.stack([tokens.float() for tokens in _tokens(output)])

    def _errors(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        targets = self.targets(batch["image"])
        variance = targets.flatten(1, 2).var(dim=1, correction=0).mean(dim=1)
        return (prediction - targets).square().mean(dim=(1, 2, 3)) / variance


def _tokens(output: EncoderOutput) -> list[Tensor]:
    return [torch.cat(pair, dim=1) for pair in zip(output.prefix_tokens, output.hidden_states, strict=True)]


def check_layers(head: Head, layers: Sequence[int], depth: int) -> None:
    """Refuse numbers of layers that an encoder of `depth` blocks does not have.

    Raises:
        ValueError: if there are none, one is outside of 1 to `depth`, or one is named twice.
    """
    if not layers or not all(1 <= layer <= depth for layer in layers) or len(set(layers)) < len(layers):
        raise ValueError(
            f"{type(head).__name__}.layers must be different numbers from 1 to {depth}, not {list(layers)}"
        )


def _linear(width: int, rank: int | None, out: int) -> nn.Module:
    return nn.Linear(width, out) if rank is None else nn.Sequential(nn.Linear(width, rank), nn.Linear(rank, out))


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
