"""The same few images of a split, whatever the batches, their order and the number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.metrics import image_digests

NO_CLASS = -1  # of an image whose label is not a class
Key = tuple[str, int]  # an image's digest, and its class


class ChosenImages:
    """The features of those images, of all that are fed, whose keys are smallest; equal keys count once.

    Args:
        limit: how many images; more are never held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: dict[Key, dict[str, Tensor]] = {}

    def update(self, keys: Sequence[Key], features: Mapping[str, Tensor]) -> None:
        """Feed a batch.

        Args:
            keys: of its B images, see `image_keys`.
            features: tensors (B, ...) by name; always the same names.
        """
        fed = {*self._rows, *keys}
        smallest = fed if len(fed) <= self.limit else set(sorted(fed)[: self.limit])
        for key in self._rows.keys() - smallest:
            del self._rows[key]
        new = {key: row for row, key in enumerate(keys) if key in smallest and key not in self._rows}
        if not new:
            return
        index = torch.tensor(list(new.values()))
        chosen = {name: tensor[index.to(tensor.device)].cpu() for name, tensor in features.items()}
        for row, key in enumerate(new):
            # Copies, since a view would keep the whole batch.
            self._rows[key] = {name: tensor[row].clone() for name, tensor in chosen.items()}

    def gather(self) -> dict[str, Tensor]:
        """The N chosen images of all processes, which all have to call this, sorted by key.

        Returns:
            The features by name, (N, ...), and "label" (N,), which is -1 without a class; only "label" if N is 0.
        """
        keys = sorted(set(gather_lists(list(self._rows))))[: self.limit]
        local_keys = [key for key in keys if key in self._rows]
        names = list(next(iter(self._rows.values()), {}))
        stacked = {name: torch.stack([self._rows[key][name] for key in local_keys]) for name in names}
        parts = gather_lists([(local_keys, stacked)] if local_keys else [])
        positions = {key: row for row, key in enumerate(chain.from_iterable(held for held, _ in parts))}
        order = [positions[key] for key in keys]
        label = torch.tensor([number for _, number in keys], dtype=torch.int64)
        names = list(parts[0][1]) if parts else []
        features = {name: torch.cat([part[name] for _, part in parts])[order] for name in names}
        return features | {"label": label}


def image_keys(batch: dict[str, Any]) -> list[Key]:
    """Digest and class of every image of a batch; the class is -1 where "label" holds none."""
    digests, label = image_digests(batch["image"]), batch.get("label")
    if not isinstance(label, Tensor) or label.shape != (len(digests),) or not _is_integer(label):
        return [(digest, NO_CLASS) for digest in digests]
    return list(zip(digests, label.clamp_min(NO_CLASS).tolist(), strict=True))


def with_classes(chosen: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows, of what `ChosenImages.gather` gave, of images that have a class."""
    known = chosen["label"] != NO_CLASS
    return {name: tensor[known] for name, tensor in chosen.items()}


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
