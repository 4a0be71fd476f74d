"""Mean and standard deviation of a tokenizer's latents, channel by channel: kept with it, and used to normalise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniflow.layers.precision import full_precision

# A constant channel has the standard deviation 0; it is divided by this instead.
MIN_STD = 1e-6


class NormalizedLatents(nn.Module):
    """What a tokenizer knows about the distribution of its latents.

    Attributes:
        latent_mean: mean of each channel, (C,), float32; None without statistics. Not in the state dict.
        latent_std: population standard deviation of each channel, (C,), float32; None without statistics. Not in the
            state dict.
    """

    latent_mean: Tensor | None
    latent_std: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.clear_latent_statistics()

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels C of the latents."""

    @property
    def latent_statistics(self) -> dict[str, Any] | None:
        """`{"mean": [...], "std": [...], "count": N}` as measured, for the config; None if nothing was measured."""
        return self._latent_statistics

    def set_latent_statistics(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, count: int) -> None:
        """Keep what was measured.

        Args:
            mean: of each channel, C numbers.
            std: population standard deviation of each channel, C numbers of at least 0.
            count: latent vectors (grid positions, not images) that were measured, at least 1.

        Raises:
            ValueError: if these are not C finite means and standard deviations, or nothing was counted.
        """
        means, stds = [float(value) for value in mean], [float(value) for value in std]
        if len(means) != self.latent_channels or len(stds) != self.latent_channels:
            raise ValueError(
                f"latent statistics need {self.latent_channels} means and standard deviations, one for each channel, "
                f"got {len(means)} and {len(stds)}"
            )
        if not all(map(math.isfinite, means + stds)) or min(stds) < 0 or count < 1:
            raise ValueError(
                "latent statistics must be finite, no standard deviation negative and the count at least 1, "
                f"got mean {means}, std {stds}, count {count}"
            )
        self._latent_statistics: dict[str, Any] | None = {"mean": means, "std": stds, "count": int(count)}
        device = next(self.parameters()).device
        for name, values in (("latent_mean", means), ("latent_std", stds)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device), persistent=False)

    def clear_latent_statistics(self) -> None:
        """Forget them: the weights that they were measured with are about to change."""
        self._latent_statistics = None
        for name in ("latent_mean", "latent_std"):
            self.register_buffer(name, None, persistent=False)

    def load_latent_statistics(self, config: Mapping[str, Any]) -> None:
        """Set or clear them as the entry "latent_statistics" of a tokenizer's `config` says; it may be missing.

        Raises:
            ValueError: if the entry is not what `latent_statistics` gives.
        """
        statistics = config.get("latent_statistics")
        if statistics is None:
            self.clear_latent_statistics()
            return
        try:
            self.set_latent_statistics(statistics["mean"], statistics["std"], statistics["count"])
        except (TypeError, KeyError) as error:
            raise ValueError(
                'the config\'s latent_statistics must be {"mean": [...], "std": [...], "count": N}, '
                f"got {str(statistics)[:100]}"
            ) from error

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """(z - mean) / max(std, 1e-6) of each channel: mean 0 and variance 1 over the data that was measured.

        Args:
            latents: (B, C, h, w).

        Returns:
            The same shape, at least float32.

        Raises:
            ValueError: if the tokenizer has no statistics.
        """
        mean, std = self._moments()
        return (full_precision(latents) - mean) / std

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize_latents`, computed in at least float32, in the type of the tokenizer's parameters.

        Raises:
            ValueError: if the tokenizer has no statistics.
        """
        mean, std = self._moments()
        plain = full_precision(latents) * std + mean
        return plain.to(next(self.parameters()).dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and floored standard deviation, (C, 1, 1), float32."""
        if self.latent_mean is None or self.latent_std is None:
            raise ValueError(
                "this tokenizer has no latent statistics to normalise with: measure them with `uniflow stats`"
            )
        mean, std = (buffer.float().view(-1, 1, 1) for buffer in (self.latent_mean, self.latent_std))
        return mean, std.clamp_min(MIN_STD)
