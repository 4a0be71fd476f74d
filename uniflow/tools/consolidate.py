"""`uniflow consolidate`: any checkpoint of a run -> a tokenizer's folder."""

from __future__ import annotations

from pathlib import Path

from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.card import read_run


def consolidate(checkpoint: Path, out: Path) -> None:
    """Write the tokenizer in a checkpoint as one safetensors file with its config: averaged weights where there are.

    No process group is needed, and no GPU.

    Args:
        checkpoint: a checkpoint of `uniflow fit`: a file, or the folder that `--trainer.strategy fsdp2` writes.
        out: the tokenizer's folder to write, for `Tokenizer.from_pretrained`.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    recipe, _ = read_run(checkpoint.parent)
    Tokenizer.from_pretrained(checkpoint).save_pretrained(out, model_card_kwargs={"recipe": recipe})
    print(f"wrote {out}")
