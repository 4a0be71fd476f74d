"""Tokenizers from and to the public UniFlow release's format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from uniflow.tokenizer import Tokenizer


def convert(direction: Literal["official", "to-official"], source: Path, out: Path, overwrite: bool = False) -> None:
    """Convert a checkpoint of the public UniFlow release into a tokenizer's folder, or back.

    Args:
        direction: official reads the release's format and writes a tokenizer; to-official the other way round.
        source: the release's folder (config.json and model.safetensors, or shards of it); for to-official a
            tokenizer's folder, or a checkpoint.
        out: folder for the result; made if needed.
        overwrite: write into a folder that is not empty.

    Raises:
        ValueError: if `out` is not empty, the source is damaged, or the release's format cannot hold it.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise ValueError(f"{out} is not an empty folder: name another one, or give --overwrite true")
    if direction == "official":
        tokenizer = Tokenizer.from_official(source)
        tokenizer.save_pretrained(out)
    else:
        tokenizer = Tokenizer.from_pretrained(source)
        tokenizer.save_official(out)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    written = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"{out}: {written}; {len(tokenizer.state_dict())} tensors, {count / 1e6:.1f} M parameters")
