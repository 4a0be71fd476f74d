"""`uniflow summary`: parameters and GFLOP of a tokenizer's parts."""

from __future__ import annotations

from pathlib import Path

from uniflow.core.numbers import PositiveInt
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.summary import print_summary


def summary(tokenizer: str | Path, image_size: PositiveInt | None = None) -> None:
    """Print parameters and GFLOP of each part of a tokenizer.

    Args:
        tokenizer: a tokenizer's folder, a checkpoint, `embedded`, or its name on the hub.
        image_size: side of the image in pixels; the encoder's pretraining size by default.
    """
    print_summary(Tokenizer.from_pretrained(tokenizer), image_size)
