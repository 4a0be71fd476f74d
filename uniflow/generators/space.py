"""Where a generator works: on all of a tokenizer's latents, or on the part of them that shows in the picture."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.moments import SecondMoments
from uniflow.core.numbers import NonNegativeFloat, PositiveInt
from uniflow.core.part import Part
from uniflow.core.specs import LatentSpec
from uniflow.layers.grid import patchify, to_tokens
from uniflow.layers.precision import full_precision

# Directions in which latents hardly vary at all are not divided by their spread.
SMALLEST_VARIANCE = 1e-8


class LatentSpace(Part):
    """Maps normalised latents to what a generator makes, and back. This class changes nothing.

    Attributes:
        latent: spec of the tokenizer's latents.
        spec: spec of what the generator makes.
        fit_images: training images that `fit` needs; 0 if there is nothing to fit.
    """

    latent: LatentSpec
    spec: LatentSpec
    fit_images: int = 0

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.latent = self.spec = latent

    @property
    def is_fitted(self) -> bool:
        """Whether it can be used."""
        return True

    def fit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Choose the map. Every process calls this with its own share, and all get the same map.

        Args:
            pairs: normalised latents (B, C, h, w) and the images (B, 3, H, W) in [0, 1] that they are decoded to.
        """

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of what the generator makes, for latents of so many.

        Raises:
            ValueError: if the latents cannot be divided so.
        """
        return rows, columns

    @property
    def feature_channels(self) -> int:
        """Channels of what `features` gives."""
        return self.latent.channels

    def features(self, latents: Tensor) -> Tensor:
        """All of the normalised latents (B, C, h, w), on the grid of what the generator makes: (B, F, h', w')."""
        return latents

    def forward(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) -> what the generator makes, (B, C', h', w'), of about unit variance."""
        return latents

    def inverse(self, values: Tensor) -> Tensor:
        """(B, C', h', w') -> normalised latents (B, C, h, w)."""
        return values


class PictureSpace(LatentSpace):
    """The directions of the latents that carry most of the picture, of blocks of several latents each.

    Latents that understand images vary most in directions that hardly show in the picture, and least in those that
    paint it. A small generator that has to model all of them alike spends itself on the former. Here the latents of a
    block are whitened, a linear regression on the pixels of the block is made, and its singular vectors are the new
    channels (this is redundancy analysis, the reduced-rank regression of whitened inputs). Their variance is the share
    of the pixels' variance that they explain, plus `floor`. What is left out is set to its mean.

    Args:
        latent: spec of the latents.
        channels: directions that are kept, of each block.
        block: side of a block in latents.
        floor: variance that each direction has beside its share of the pixels, as a part of the mean share.
        images: training images that the regression is made on.

    Raises:
        ValueError: if there are not so many directions.
    """

    def __init__(
        self,
        latent: LatentSpec,
        channels: PositiveInt = 64,
        block: PositiveInt = 2,
        floor: NonNegativeFloat = 0.05,
        images: PositiveInt = 2048,
    ) -> None:
        super().__init__(latent)
        side = latent.patch_size * block
        self.block, self.floor, self.fit_images = block, floor, images
        self._wide = latent.channels * block**2
        if channels > min(self._wide, 3 * side**2):
            raise ValueError(
                f"PictureSpace: channels must be at most {min(self._wide, 3 * side**2)}, the directions of a block of "
                f"{block} x {block} latents, got {channels}"
            )
        self.spec = LatentSpec(channels, side)
        self.register_buffer("mean", torch.zeros(self._wide))
        self.register_buffer("into", torch.zeros(channels, self._wide))
        self.register_buffer("back", torch.zeros(self._wide, channels))

    mean: Tensor
    into: Tensor
    back: Tensor

    @property
    def is_fitted(self) -> bool:
        return bool(self.into.any())

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        moments = SecondMoments()
        for latents, images in pairs:
            rows = to_tokens(self._blocks(latents)).flatten(0, 1)
            moments.update(rows, patchify(images, self.spec.patch_size).flatten(0, 1))
        moments.reduce()
        variances, axes = torch.linalg.eigh(moments.input_covariance)
        spread = variances.clamp_min(SMALLEST_VARIANCE).sqrt()
        whiten = axes / spread  # (C b^2, D)
        directions, strengths, _ = torch.linalg.svd(whiten.T @ moments.cross_covariance, full_matrices=False)
        kept = self.spec.channels
        shares = strengths.square() / strengths.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
        scale = (shares[:kept] + self.floor).clamp_min(SMALLEST_VARIANCE).sqrt()
        scale = scale / scale.square().mean().sqrt()
        self.mean.copy_(moments.input_mean)
        self.into.copy_(scale[:, None] * (whiten @ directions[:, :kept]).T)
        self.back.copy_((axes * spread) @ directions[:, :kept] / scale)

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        if rows % self.block or columns % self.block:
            raise ValueError(
                f"PictureSpace: latents of {rows} x {columns} are not made of blocks of {self.block} x {self.block}; "
                f"take images whose sides are multiples of {self.spec.patch_size} pixels, or another block"
            )
        return rows // self.block, columns // self.block

    @property
    def feature_channels(self) -> int:
        return self._wide

    def features(self, latents: Tensor) -> Tensor:
        return self._blocks(latents)

    def forward(self, latents: Tensor) -> Tensor:
        self.grid(latents.shape[-2], latents.shape[-1])
        centred = self._blocks(full_precision(latents)) - self.mean[:, None, None]
        return torch.einsum("kc,bchw->bkhw", self.into, centred).to(latents.dtype)

    def inverse(self, values: Tensor) -> Tensor:
        wide = torch.einsum("ck,bkhw->bchw", self.back, full_precision(values)) + self.mean[:, None, None]
        return F.pixel_shuffle(wide, self.block).to(values.dtype)

    def _blocks(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C b^2, h / b, w / b)."""
        return F.pixel_unshuffle(latents, self.block)
