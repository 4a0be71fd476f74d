"""Pretraining of an encoder from labels, from the images themselves, or from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from torch import Tensor, nn

from uniflow.core.numbers import NonNegativeInt
from uniflow.data.unlabelled import UnlabelledCrops
from uniflow.encoders.base import VisionEncoder
from uniflow.features import FeatureSource
from uniflow.heads import ColorHead, DenseHead, DepthHead, Head, LabelHead, MaskHead  # old configs name them here
from uniflow.start.copied import CopiedWeights
from uniflow.tasks.features import FeatureTask, HeadFactory
from uniflow.training.trainer import is_dry_run

__all__ = ["ColorHead", "DenseHead", "DepthHead", "Head", "LabelHead", "MaskHead", "Pretraining", "save_encoder"]


class Pretraining(FeatureTask):
    """Trains an encoder on several heads at once: on labels, and on what the image itself or a teacher says.

    All heads of labels read patch tokens, since features, probes and dense tasks do: a class token would keep the
    labels to itself. When fit ends, the encoder's weights are written to the run's folder.

    Batches are dicts with "image" (B, 3, H, W) and what the heads need.

    Args:
        encoder: makes the encoder, with random weights.
        heads: make the heads, each from the encoder's spec.
        export: name of the safetensors file in the run's folder; float16, keys as in the encoder's own model.
        start: a trained encoder whose weights the new one starts from; None leaves them random.
        unlabelled: further images of each training step, for the heads that need no labels; None has none.
        probe_images: see `FeatureTask`.
        **task: `optimizer`, `lr_schedule` and the others of `Task`.
    """

    encoder: VisionEncoder

    def __init__(
        self,
        encoder: Callable[[], VisionEncoder],
        heads: Sequence[HeadFactory],
        export: str = "encoder.safetensors",
        start: CopiedWeights | None = None,
        unlabelled: UnlabelledCrops | None = None,
        probe_images: NonNegativeInt = 10_000,
        **task: Any,
    ) -> None:
        # An encoder is used as a source is: by its spec and its forward pass.
        super().__init__(cast(Callable[[], FeatureSource], encoder), heads, True, probe_images, **task)
        self._make_encoder = encoder
        self.start, self.unlabelled, self.export = start, unlabelled, export

    def build(self) -> None:
        # Under its own name, not inside a source: checkpoints call it "encoder".
        self.encoder = self._make_encoder()
        if self.start is not None:
            self.start(self.encoder)
        self.build_heads(self.encoder.spec)

    @property
    def backbone(self) -> nn.Module:
        return self.encoder

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.losses(self.features(batch["image"]), batch)
        if self.unlabelled is not None:
            further = {"image": self.unlabelled.draw().to(self.device)}
            more = self.losses(self.features(further["image"]), further, labelled=False)
            losses |= {f"{name}_unlabelled": loss for name, loss in more.items()}
        return self.log_losses(losses)

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero and not is_dry_run(self.trainer):
            save_encoder(self.encoder, Path(self.trainer.default_root_dir) / self.export)


def save_encoder(encoder: VisionEncoder, path: str | Path) -> None:
    """Write an encoder's weights as float16 safetensors, in the key format that its `weights` argument reads."""
    state = {key.removeprefix("model."): value.detach().half().cpu() for key, value in encoder.state_dict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
