"""Base class of the data modules that crop images: the settings of crops, in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from uniflow.core.numbers import PositiveInt
from uniflow.data.base import ImageDataModule
from uniflow.data.images.buckets import Buckets, BucketSampler
from uniflow.data.images.reading import MAX_PIXELS
from uniflow.data.images.transforms import CenterCrop, RandomResizedCrop
from uniflow.data.sampler import TrainSampler


class CroppedImages(ImageDataModule):
    """Base class of data modules whose images are cropped to one size, or to several in training.

    A subclass takes these settings as `**settings` and passes them on, so that YAML lists them as its arguments. Its
    training dataset calls `train_crop`, with the size of the `SampleIndex`; the other datasets call `eval_crop`.
    `uniflow.data.joint` applies the same crops to images with masks, depth maps and boxes.

    Attributes:
        train_crop: the random crop of training.
        eval_crop: the centre crop of validation and test.
    """

    size: int

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        center_crop: float = 0.875,
        buckets: list[int | tuple[int, int]] | None = None,
        crops_per_image: PositiveInt | None = None,
        max_pixels: int = MAX_PIXELS,
        **loading: Any,
    ) -> None:
        """
        Args:
            size: side of the square images in a batch, in pixels.
            scale: smallest and largest share of a training image's area that a random crop keeps.
            ratio: smallest and largest width / height of a random crop, relative to that of the batch.
            flip: probability of a horizontal flip in training.
            center_crop: share of the short side that evaluation keeps.
            buckets: sizes of training batches in pixels, each a height and a width, or one number for a square; each
                batch has one of them. By default all have `size`. Evaluation always uses `size`.
            crops_per_image: random crops of each training image, which come again in this many epochs; None: every
                epoch has new ones. For what is computed once for each crop, such as `state_cache` of `TokenizerTask`.
            max_pixels: images with more pixels than this are skipped and named in the log of skipped images; at most
                178,956,970, PIL's own limit.
            loading: the arguments of `ImageDataModule`.

        Raises:
            ValueError: if a setting is out of range.
        """
        super().__init__(**loading)
        if not 1 <= max_pixels <= MAX_PIXELS:
            raise ValueError(f"{type(self).__name__}: max_pixels must be in 1 ... {MAX_PIXELS}, not {max_pixels}")
        self.size, self.max_pixels = size, max_pixels
        self.buckets = Buckets(buckets, self.seed) if buckets is not None else None
        self.crops_per_image = crops_per_image
        self.train_crop = RandomResizedCrop(self.buckets.largest_side if self.buckets else size, scale, ratio, flip)
        self.eval_crop = CenterCrop(size, center_crop)

    def crops(self) -> dict[str, Any]:
        return {**super().crops(), "center_crop": self.eval_crop.crop}

    @property
    def repeats_samples(self) -> bool:
        return self.crops_per_image is not None

    def train_sampler(self, dataset: Dataset) -> TrainSampler:
        """The order of training on a map-style dataset; with buckets, in batches of one size each."""
        if self.buckets is None:
            sampler = super().train_sampler(dataset)
        else:
            aspects = self.image_aspects()
            sampler = BucketSampler(dataset, self.world_size, self.rank, self.buckets, self.batch_size, aspects)
        sampler.versions = self.crops_per_image
        return sampler

    def image_aspects(self) -> np.ndarray | None:
        """For each training image the index of its aspect ratio in `buckets.aspects`; None: sizes are drawn."""
        return None
