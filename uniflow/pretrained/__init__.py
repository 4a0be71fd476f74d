"""Tokenizers that come with the package, ready right after the install and without a network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

# The tokenizer that tools take where none is named.
DEFAULT = "embedded"


def packaged(name: str) -> Path | None:
    """The folder of the package's tokenizer `name`, as `Tokenizer.save_pretrained` writes one; None if there is none.

    "embedded" is the only one: EmbeddedViT with 64 channels at patch 8, see its README.md.
    """
    if not name.isidentifier():  # neither a path nor a name on the hub leads into the package
        return None
    folder = Path(str(files("uniflow.pretrained") / name))
    return folder if (folder / "config.json").is_file() else None
