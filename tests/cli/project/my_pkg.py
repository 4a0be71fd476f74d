"""A user's own parts, in their working directory: what `--model.decoder my_pkg.MyDecoder` finds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from uniflow.cli.checkpoint import LastCheckpoint
from uniflow.core.specs import LatentSpec
from uniflow.data import Scenes
from uniflow.decoders import PixelDecoder
from uniflow.distill import LayerWeighting
from uniflow.encoders import SceneViT


class MyDecoder(PixelDecoder):
    """A linear layer for each patch."""

    def __init__(self, latent: LatentSpec, width: int = 8, num_heads: int = 1) -> None:
        super().__init__()
        self.spec = latent
        self.up = nn.Conv2d(latent.channels, width, 1)
        self.paint = nn.ConvTranspose2d(width, 3, latent.patch_size, latent.patch_size)

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        return {"my_loss": (self.paint(self.up(latents)) - images).square().mean()}

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.paint(self.up(latents))


class RefusingDecoder(MyDecoder):
    """Bad input that only building the part can find."""

    def __init__(self, latent: LatentSpec, width: int = 8) -> None:
        raise ValueError(f"width must be a multiple of 7,\nnot {width}")


class BrokenDecoder(MyDecoder):
    """A bug that shows in the first training step."""

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        raise ValueError("a bug in the training step")


class InterruptedDecoder(MyDecoder):
    """Ctrl-C in the first training step."""

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        raise KeyboardInterrupt


class OtherViT(SceneViT):
    """Shares every argument with SceneViT."""


class OtherScenes(Scenes):
    """Shares every argument with Scenes."""


class OtherWeighting(LayerWeighting):
    """Shares `beta` with Adaptive."""

    def __init__(self, beta: float = 7.0) -> None:
        self.beta = beta

    def scores(self, distances: Tensor, progress: float) -> Tensor:
        return torch.ones_like(distances) * self.beta


class Witness(Callback):
    """Leaves a file when training starts."""

    def __init__(self, name: str = "witness") -> None:
        self.name = name

    def on_train_start(self, trainer, pl_module) -> None:
        open(self.name, "w").close()


class OtherWitness(Witness):
    """Shares `name` with Witness."""


class OtherCheckpoint(LastCheckpoint):
    """Shares every argument with LastCheckpoint."""


class StopAt(Callback):
    """Stops after `step` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step
