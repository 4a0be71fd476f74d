"""Random crops of a folder's images beside the batches of a data module, for losses that need no labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from uniflow.data.images.listing import list_images
from uniflow.data.images.reading import read_image
from uniflow.data.images.transforms import RandomResizedCrop, resize_short_side


class UnlabelledCrops:
    """Batches of random crops from a folder of images, all of which are kept in memory: meant for a few hundred.

    Which crops a step gets depends on torch's random state alone, which a task seeds by the step: a resumed run draws
    what the uninterrupted one drew.

    Args:
        root: the folder; its subfolders are searched as well.
        batch_size: crops of a step at the first of `sizes`; at another as many as have the same number of pixels.
        sizes: sides of the crops in pixels; a step draws one of them, each as often as it is named.
        scale: share of an image's area that a crop keeps, least and largest.
        short_side: images are shrunk to this short side in pixels when they are read.

    Raises:
        ValueError: if a setting is out of range; in the first `draw`, if the folder holds no images.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        sizes: Sequence[int] = (64,),
        scale: tuple[float, float] = (0.01, 0.6),
        short_side: int = 512,
    ) -> None:
        if batch_size < 1 or short_side < 1:
            raise ValueError("UnlabelledCrops: batch_size and short_side must be at least 1")
        if not sizes:
            raise ValueError("UnlabelledCrops.sizes is empty: give at least one side in pixels")
        self.root, self.batch_size, self.short_side = Path(root).expanduser(), batch_size, short_side
        self.sizes = list(sizes)
        self.crops = {size: RandomResizedCrop(size, scale) for size in self.sizes}
        self._images: list[Tensor] = []

    def draw(self) -> Tensor:
        """Random crops of random images, uint8 (n, 3, size, size)."""
        if not self._images:
            self._images = self._read()
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        number = max(1, round(self.batch_size * (self.sizes[0] / size) ** 2))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        chosen = torch.randint(len(self._images), (number,), generator=generator).tolist()
        return torch.stack([self.crops[size](self._images[i], generator) for i in chosen])

    def _read(self) -> list[Tensor]:
        names = list_images(self.root) if self.root.is_dir() else []
        if not names:
            raise ValueError(f"UnlabelledCrops: {self.root} holds no images; give a folder of images")
        images = [read_image(self.root / name, name) for name in names]
        return [resize_short_side(i, self.short_side) if min(i.shape[-2:]) > self.short_side else i for i in images]
