"""Base class of conditions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uniflow.core.part import Part
from uniflow.core.specs import ConditionSpec


@dataclass
class Conditioning:
    """What a generator is told about B samples.

    Attributes:
        vector: (B, width), added to the embedding of the time.
        tokens: (B, T, token_width) to attend to; None if the condition gives none.
        mask: (B, T), True where there is a token; None without tokens.
    """

    vector: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, chosen: slice) -> Conditioning:
        """What is told about some of the samples."""
        tokens, mask = (None if part is None else part[chosen] for part in (self.tokens, self.mask))
        return Conditioning(self.vector[chosen], tokens, mask)


torch.export.register_dataclass(Conditioning)


def join(first: Conditioning, second: Conditioning) -> Conditioning:
    """Both batches as one; the tokens of the one with fewer are padded."""
    vector = torch.cat([first.vector, second.vector])
    if first.tokens is None or second.tokens is None:
        return Conditioning(vector)
    length = max(first.tokens.shape[1], second.tokens.shape[1])
    padded = [_padded(told.tokens, told.mask, length) for told in (first, second) if told.tokens is not None]
    return Conditioning(vector, *(torch.cat(both) for both in zip(*padded, strict=True)))


def _padded(tokens: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, length, token_width), and their mask."""
    known = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    extra = length - tokens.shape[1]
    return F.pad(tokens, (0, 0, 0, extra)), F.pad(known, (0, extra))


class Condition(Part):
    """Base class of conditions. A subclass sets `spec`, `field` and `dropout`, and owns what stands for "no condition".

    Attributes:
        spec: what it gives.
        field: name of the batch's field that it reads; None if it reads none.
        dropout: share of training samples that are told nothing, so that guidance knows what to move away from.
    """

    spec: ConditionSpec
    field: str | None
    dropout: float = 0.0

    @abstractmethod
    def forward(self, values: Any, dropped: Tensor) -> Conditioning:
        """Tell about B samples.

        Args:
            values: what the batch's field holds; None if all are dropped.
            dropped: (B,) bool, the samples that are told nothing.

        Raises:
            ValueError: if a value is not one that it knows.
        """

    def parse(self, words: Sequence[str]) -> Any:
        """Values for `forward` from words of the command line.

        Raises:
            ValueError: if a word is not a value.
        """
        raise ValueError(f"{type(self).__name__} takes no values, got {', '.join(words)}")

    def share(self, model: Any, tokenizer: Any) -> bool:
        """Take a language model that is in memory already, if it is the one that this condition was trained with.

        Args:
            model: of transformers, with or without a head.
            tokenizer: its tokenizer.

        Returns:
            Whether it is; if not, or by default, nothing changes.
        """
        return False

    def example(self, count: int) -> Any:
        """Values for `forward` of `count` samples, for `uniflow plan`: only shapes and types matter."""
        return None

    def check_data(self, data: Any) -> None:
        """Called with the data module before training; nothing by default.

        Raises:
            ValueError: if the condition cannot be used with this data.
        """
