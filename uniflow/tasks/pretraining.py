"""Supervised pretraining of a small encoder whose patch tokens carry the labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from uniflow.core.pixels import to_unit_range
from uniflow.core.specs import EncoderSpec
from uniflow.encoders.base import EncoderOutput, VisionEncoder
from uniflow.layers.cpu import fuse_attention
from uniflow.layers.precision import without_autocast
from uniflow.metrics import Averages, linear_probe
from uniflow.tasks.base import OptimizerFactory, Task
from uniflow.tasks.pretraining_start import CopiedWeights
from uniflow.tasks.unlabelled import UnlabelledCrops
from uniflow.training.optimizers import FusedAdamW
from uniflow.training.schedules import Schedule


class Head(nn.Module, ABC):
    """Teaches the encoder one thing: predicts a kind of label, or something else, from its hidden states.

    The heads of labels read the last block's patch tokens, and nothing else; `uniflow.tasks.pretraining_heads` has
    heads that need no labels and read other layers. `labels` names what a head needs in a batch besides the image.

    Args:
        weight: factor on the head's loss.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"{type(self).__name__}.weight must not be negative, got {weight}")
        self.weight = weight

    @abstractmethod
    def forward(self, output: EncoderOutput) -> Tensor:
        """The prediction, in float32."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        """A scalar, not yet weighted."""

    @abstractmethod
    def metrics(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars for validation and test, by name."""


class LabelHead(Head):
    """Image class ("label") from the mean patch token, by cross entropy: what a linear probe will read.

    Args:
        spec: of the encoder.
        num_classes: number of classes.
        weight: factor on the loss.
    """

    name = "label"
    labels = ("label",)

    def __init__(self, spec: EncoderSpec, num_classes: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.classifier = nn.Sequential(nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, num_classes))

    def forward(self, output: EncoderOutput) -> Tensor:
        return self.classifier(output.hidden_states[-1].mean(dim=1)).float()

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(prediction, batch["label"])

    def metrics(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"accuracy": (prediction.argmax(dim=1) == batch["label"]).float().mean()}


class DenseHead(Head):
    """Base class of heads that predict, linearly from each patch token, values on a grid of cells inside the patch.

    Args:
        spec: of the encoder.
        channels: values a cell.
        cells: cells along each side of a patch; must divide the patch size.
        weight: factor on the loss.

    Raises:
        ValueError: if `cells` does not divide the patch size.
    """

    def __init__(self, spec: EncoderSpec, channels: int, cells: int, weight: float) -> None:
        super().__init__(weight)
        if cells < 1 or spec.patch_size % cells:
            raise ValueError(f"{type(self).__name__}.cells must divide the patch size {spec.patch_size}, got {cells}")
        self.cell_size = spec.patch_size // cells
        self.predict = nn.Sequential(nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, channels * cells * cells))
        self.unfold = nn.PixelShuffle(cells)

    def forward(self, output: EncoderOutput) -> Tensor:
        """Predictions as an image of cells, (B, channels, rows, columns)."""
        values = self.predict(output.hidden_states[-1]).float()
        grid = values.transpose(1, 2).unflatten(2, output.grid)
        return self.unfold(grid)

    def pool(self, maps: Tensor) -> Tensor:
        """The mean of (B, c, H, W) over each cell, in float32."""
        return F.avg_pool2d(maps.float(), self.cell_size)


class MaskHead(DenseHead):
    """Semantic mask ("mask"; 0 is background): each cell's shares of the classes, by cross entropy.

    Args:
        spec: of the encoder.
        num_classes: classes, the background included.
        cells: cells along each side of a patch.
        weight: factor on the loss.
        background_weight: factor on the background's part of the loss; below 1 the classes come first.
    """

    name = "mask"
    labels = ("mask",)
    class_weights: Tensor

    def __init__(
        self,
        spec: EncoderSpec,
        num_classes: int,
        cells: int = 1,
        weight: float = 1.0,
        background_weight: float = 1.0,
    ) -> None:
        super().__init__(spec, num_classes, cells, weight)
        if background_weight < 0:
            raise ValueError(f"MaskHead.background_weight must not be negative, got {background_weight}")
        self.num_classes = num_classes
        weights = torch.tensor([background_weight] + [1.0] * (num_classes - 1))
        self.register_buffer("class_weights", weights, persistent=False)

    def _shares(self, batch: dict[str, Any]) -> Tensor:
        classes = torch.arange(self.num_classes, device=batch["mask"].device).view(-1, 1, 1)
        return self.pool(batch["mask"].unsqueeze(1) == classes)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(prediction, self._shares(batch), weight=self.class_weights)

    def metrics(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Accuracy over cells, and over those cells whose majority is no background."""
        target = self._shares(batch).argmax(dim=1)
        right = (prediction.argmax(dim=1) == target).float()
        foreground = (target > 0).float()
        return {
            "mask_accuracy": right.mean(),
            "mask_foreground_accuracy": (right * foreground).sum() / foreground.sum().clamp_min(1),
        }


class DepthHead(DenseHead):
    """Mean depth ("depth", (B, H, W), positive) of each cell: L1 distance of logarithms.

    Args:
        spec: of the encoder.
        cells: cells along each side of a patch.
        weight: factor on the loss.
    """

    name = "depth"
    labels = ("depth",)

    def __init__(self, spec: EncoderSpec, cells: int = 1, weight: float = 1.0) -> None:
        super().__init__(spec, 1, cells, weight)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.l1_loss(prediction, self.pool(batch["depth"].unsqueeze(1)).log())

    def metrics(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Mean relative error |d - d*| / d*."""
        target = self.pool(batch["depth"].unsqueeze(1))
        return {"depth_abs_rel": ((prediction.exp() - target).abs() / target).mean()}


class ColorHead(DenseHead):
    """Mean colour of each cell of the image itself: mean squared error of RGB in [0, 1].

    Args:
        spec: of the encoder.
        cells: cells along each side of a patch.
        weight: factor on the loss.
    """

    name = "color"

    def __init__(self, spec: EncoderSpec, cells: int = 1, weight: float = 1.0) -> None:
        super().__init__(spec, 3, cells, weight)

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> Tensor:
        return F.mse_loss(prediction, self.pool(to_unit_range(batch["image"])))

    def metrics(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Root of the mean squared error of RGB in [0, 1]."""
        return {"color_rmse": self.loss(prediction, batch).sqrt()}


class Pretraining(Task):
    """Pretraining on several labels at once, and on what the picture itself or a teacher says.

    All heads of labels read patch tokens, since features, probes and dense tasks do: a class token would keep the
    labels to itself. When fit ends, the encoder's weights are written to the run's folder.

    Batches are dicts with "image" (B, 3, H, W) and what the heads need.

    Args:
        encoder: makes the encoder, with random weights.
        heads: make the heads, each from the encoder's spec; one of a kind.
        export: name of the safetensors file in the run's folder; float16, keys as in the encoder's own model.
        optimizer: parameter groups -> optimizer.
        lr_schedule: factor on the learning rate over progress; None is 5 % warm-up, then cosine to 1 %.
        start: a trained encoder whose weights the new one starts from; None leaves them random.
        unlabelled: further images of each training step, for the heads that need no labels; None has none.
    """

    encoder: VisionEncoder

    def __init__(
        self,
        encoder: Callable[[], VisionEncoder],
        heads: Sequence[Callable[[EncoderSpec], Head]],
        export: str = "encoder.safetensors",
        optimizer: OptimizerFactory = FusedAdamW,
        lr_schedule: Schedule | None = None,
        start: CopiedWeights | None = None,
        unlabelled: UnlabelledCrops | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
        if not heads:
            raise ValueError("Pretraining.heads is empty: give at least one head")
        self._make_encoder, self._make_heads = encoder, heads
        self.start, self.unlabelled, self.export = start, unlabelled, export
        self._features: list[tuple[Tensor, Tensor]] = []
        self._averages = Averages()

    def build(self) -> None:
        self.encoder = self._make_encoder()
        if self.start is not None:
            self.start(self.encoder)
        heads = [make(self.encoder.spec) for make in self._make_heads]
        names = [head.name for head in heads]
        if len(set(names)) < len(names):
            raise ValueError(f"Pretraining.heads has two heads of a kind: {', '.join(names)}")
        self.heads = nn.ModuleDict(dict(zip(names, heads, strict=True)))

    def on_fit_start(self) -> None:
        plugin = self.trainer.precision_plugin
        if self.device.type == "cpu" and isinstance(plugin, MixedPrecision) and plugin.precision == "bf16-mixed":
            fuse_attention(self, False)  # written out it is faster there

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.losses(self.encoder(batch["image"]), batch)
        if self.unlabelled is not None:
            further = {"image": self.unlabelled.draw().to(self.device)}
            more = self.losses(self.encoder(further["image"]), further, labelled=False)
            losses |= {f"{name}_unlabelled": loss for name, loss in more.items()}
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total, prog_bar=True)
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        return total

    def losses(self, output: EncoderOutput, batch: dict[str, Any], labelled: bool = True) -> dict[str, Tensor]:
        """Weighted loss of each head; without labels, of those that need none."""
        found: dict[str, Tensor] = {}
        for name, head in self._heads(labelled):
            # Losses are taken in float32 whatever the precision of the encoder's pass is.
            with without_autocast(self.device):
                prediction = head(_float(output))
                found[name] = head.weight * head.loss(prediction, batch)
        return found

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        output = self._evaluate(batch, "test")
        if "label" in batch:
            self._features.append((output.hidden_states[-1].float().mean(dim=1).cpu(), batch["label"].cpu()))

    def on_validation_epoch_end(self) -> None:
        self._log_averages()

    def on_test_epoch_end(self) -> None:
        """Linear probe of the mean patch token, fitted on the validation split and scored on the test split."""
        self._log_averages()
        scored_on, self._features = self._features, []
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time
        if data is None or not scored_on or self.trainer.world_size > 1:
            return
        fitted_on = self._mean_tokens(data.val_dataloader())
        train, test = (tuple(map(torch.cat, zip(*part, strict=True))) for part in (fitted_on, scored_on))
        self.log("test/probe", linear_probe(*train, *test))

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_encoder(self.encoder, Path(self.trainer.default_root_dir) / self.export)

    def _heads(self, labelled: bool = True) -> list[tuple[str, Head]]:
        heads = [(name, head) for name, head in self.heads.items() if isinstance(head, Head)]
        return [(name, head) for name, head in heads if labelled or not head.labels]

    def _evaluate(self, batch: dict[str, Any], stage: str) -> EncoderOutput:
        output = self.encoder(batch["image"])
        results: dict[str, Tensor] = {}
        for name, head in self._heads():
            prediction = head(_float(output))
            results[f"{stage}/{name}"] = head.weight * head.loss(prediction, batch)
            results |= {f"{stage}/{key}": value for key, value in head.metrics(prediction, batch).items()}
        for name, value in results.items():
            self._averages.update(name, value, count=len(batch["image"]))
        return output

    def _log_averages(self) -> None:
        for name, value in self._averages.compute().items():
            self.log(name, value, sync_dist=True)

    @torch.no_grad()
    def _mean_tokens(self, loader: Iterable[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
        found = []
        for batch in loader:
            with self.trainer.precision_plugin.forward_context():
                output = self.encoder(batch["image"].to(self.device))
            found.append((output.hidden_states[-1].float().mean(dim=1).cpu(), batch["label"].cpu()))
        return found


def save_encoder(encoder: VisionEncoder, path: str | Path) -> None:
    """Write an encoder's weights as float16 safetensors, in the key format that its `weights` argument reads."""
    state = {key.removeprefix("model."): value.detach().half().cpu() for key, value in encoder.state_dict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)


def _float(output: EncoderOutput) -> EncoderOutput:
    """What heads read, in float32."""
    states, prefixes = ([state.float() for state in part] for part in (output.hidden_states, output.prefix_tokens))
    return EncoderOutput(tuple(states), tuple(prefixes), output.grid)
