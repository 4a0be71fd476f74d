"""The control of the flow decoder: the same network without a flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.numbers import NonNegativeInt, PositiveInt
from uniflow.core.specs import LatentSpec
from uniflow.decoders.base import PixelDecoder
from uniflow.decoders.global_stage import GlobalStage
from uniflow.decoders.shortcut import LinearShortcut, join, split
from uniflow.layers.adaln import PatchMLP
from uniflow.layers.grid import Window, cut, patchify, to_image, to_tokens, unpatchify
from uniflow.layers.precision import full_precision, without_autocast


class RegressionDecoder(PixelDecoder):
    """Global transformer blocks and the patch MLP of `PatchFlowDecoder`, trained to predict the pixels themselves.

    A flow decoder of one step yields E[x | c] at best; this one is trained for exactly that, so it shows what the
    flow adds.

    Args:
        latent: spec of the latents.
        width: channels of the condition, of the global blocks and of the patch MLP.
        global_depth: global transformer blocks.
        num_heads: attention heads of the global blocks.
        head_depth: AdaLN residual blocks of the patch MLP.
        learned_grid: None for fixed position embeddings; (rows, columns) for trained ones of that grid.
        shortcut: add a linear path from each latent to the pixels of its patch, which starts at zero. The task's
            `start: regression` writes its solution there.
        position_shift: most rows and columns by which, in training, the grid of each image is moved over the fixed
            position embeddings, at random: positions of larger images are seen so. 0 moves nothing.
    """

    last_layer = "head.final_proj"

    def __init__(
        self,
        latent: LatentSpec,
        width: PositiveInt = 1024,
        global_depth: NonNegativeInt = 6,
        num_heads: PositiveInt = 16,
        head_depth: NonNegativeInt = 12,
        learned_grid: tuple[PositiveInt, PositiveInt] | None = None,
        shortcut: bool = False,
        position_shift: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.spec = latent
        self.global_stage = GlobalStage(latent.channels, width, global_depth, num_heads, learned_grid, position_shift)
        self.head = PatchMLP(3 * latent.patch_size**2, width, head_depth, flow=False)
        self.shortcut: LinearShortcut | None = None
        if shortcut:
            self.shortcut = LinearShortcut(latent.channels, latent.patch_size, (0.5,) * 3, (0.5,) * 3)

    def loss(self, latents: Tensor, images: Tensor) -> dict[str, Tensor]:
        """`{"regression": mean squared error}` on pixels mapped to [-1, 1], so of the flow loss's scale."""
        return self.loss_and_estimate(latents, images)[0]

    def loss_and_estimate(self, latents: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`loss`, and the images that it judged."""
        patches = self._patches(self._condition(latents))
        with without_autocast(images.device):
            target = patchify(images * 2 - 1, self.spec.patch_size)
            loss = F.mse_loss(patches, target.to(patches.dtype))
        return {"regression": loss}, self._to_images(patches, latents)

    def decode(
        self,
        latents: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.decode_context(self.context(latents))

    def context(self, latents: Tensor, window: Window | None = None) -> Tensor:
        return to_image(self._condition(latents, window), cut(latents, window).shape[-2])

    def decode_context(
        self,
        context: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._to_images(self._patches(to_tokens(context)), context)

    def _condition(self, latents: Tensor, window: Window | None = None) -> Tensor:
        tokens = self.global_stage(latents, window)
        return join(self.shortcut, tokens, to_tokens(cut(latents, window)))

    def _patches(self, condition: Tensor) -> Tensor:
        """Predicted patches (B, h w, 3 p^2) in [-1, 1], at least float32."""
        tokens, latents = split(self.shortcut, condition)
        patches = self.head(tokens)
        patches = full_precision(patches)
        return patches if self.shortcut is None else patches + self.shortcut(latents)

    def _to_images(self, patches: Tensor, latents: Tensor) -> Tensor:
        """Patches as images (B, 3, H, W), nominally in [0, 1]."""
        return unpatchify(patches, self.spec.patch_size, (latents.shape[-2], latents.shape[-1])) * 0.5 + 0.5
