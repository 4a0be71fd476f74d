"""A plain transformer that predicts patches: the decoder of representation autoencoders."""

from __future__ import annotations

from typing import Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from uniflow.core.numbers import NonNegativeInt, PositiveInt
from uniflow.core.specs import LatentSpec
from uniflow.decoders.direct import DirectDecoder
from uniflow.decoders.shortcut import join, split
from uniflow.layers.adaln import zero_linear
from uniflow.layers.grid import PositionEmbedding, Window, cut, to_image, to_tokens, unpatchify
from uniflow.layers.init import preserve_variance_
from uniflow.layers.precision import full_precision


class ViTDecoder(DirectDecoder):
    """Vision Transformer decoder of representation autoencoders (RAE, arXiv 2510.11690).

    Latents are projected up, get a 2D position embedding, pass transformer blocks and a final norm, and each token is
    projected to the pixels of its patch. The paper trains it on L1, a perceptual and an adversarial loss; the last two
    are `Perceptual` and `Adversarial`.

    Args:
        latent: spec of the latents.
        width: channels of the tokens.
        depth: transformer blocks; 0 leaves each patch alone with its own latent.
        num_heads: attention heads; divides `width`.
        loss: "l1" (the paper) or "l2", on pixels mapped to [-1, 1].
        learned_grid: None for fixed position embeddings; (rows, columns) for trained ones of that grid.
        shortcut: add a linear path from each latent to the pixels of its patch, which starts at zero. The task's
            `start: regression` writes its solution there.
        position_shift: most rows and columns by which, in training, the grid of each image is moved over the fixed
            position embeddings, at random: positions of larger images are seen so. 0 moves nothing.

    Raises:
        ValueError: for a width that the heads do not divide or that is not a multiple of 4, or another loss.
    """

    last_layer = "head"

    def __init__(
        self,
        latent: LatentSpec,
        width: PositiveInt = 768,
        depth: NonNegativeInt = 12,
        num_heads: PositiveInt = 12,
        loss: Literal["l1", "l2"] = "l1",
        learned_grid: tuple[PositiveInt, PositiveInt] | None = None,
        shortcut: bool = False,
        position_shift: NonNegativeInt = 0,
    ) -> None:
        super().__init__(latent, loss, shortcut)
        if width % 4 or width % num_heads:
            raise ValueError(f"ViTDecoder.width must be divisible by 4 and by its num_heads {num_heads}, got {width}")
        self.up = nn.Linear(latent.channels, width)
        preserve_variance_(self.up)
        self.position = PositionEmbedding(width, learned_grid, position_shift)
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = zero_linear(width, 3 * latent.patch_size**2)

    def predict(self, latents: Tensor) -> Tensor:
        return self._pixels(self._tokens(latents), (latents.shape[-2], latents.shape[-1]))

    def context(self, latents: Tensor, window: Window | None = None) -> Tensor:
        seen = cut(latents, window)
        joined = join(self.shortcut, self._tokens(latents, window), to_tokens(seen))
        return to_image(joined, seen.shape[-2])

    def decode_context(
        self,
        context: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        grid = (context.shape[-2], context.shape[-1])
        tokens, latents = split(self.shortcut, to_tokens(context))
        pixels = self._pixels(tokens, grid)
        pixels = full_precision(pixels)
        if self.shortcut is not None:
            pixels = pixels + unpatchify(self.shortcut(latents), self.spec.patch_size, grid)
        return pixels * 0.5 + 0.5

    def _tokens(self, latents: Tensor, window: Window | None = None) -> Tensor:
        """What the last layer reads, (B, h w, width)."""
        grid, seen = (latents.shape[-2], latents.shape[-1]), cut(latents, window)
        tokens = self.up(to_tokens(seen))
        tokens = self.position(tokens, grid, window, self.position.draw_offsets(tokens.shape[0]))
        return self.norm(self.blocks(tokens))

    def _pixels(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return unpatchify(self.head(tokens), self.spec.patch_size, grid)
