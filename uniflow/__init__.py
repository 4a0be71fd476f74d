"""uniflow: turn any pretrained vision encoder into a unified visual tokenizer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from uniflow.core.moved import install as _keep_old_paths
from uniflow.version import __version__

if TYPE_CHECKING:
    from uniflow.core.specs import EncoderSpec, LatentSpec
    from uniflow.tokenizer import Tokenizer

__all__ = ["EncoderSpec", "LatentSpec", "Tokenizer", "__version__"]

_keep_old_paths()
# Imported on first use, so that `uniflow --version` need not wait for torch.
_LAZY = {"EncoderSpec": "uniflow.core.specs", "LatentSpec": "uniflow.core.specs", "Tokenizer": "uniflow.tokenizer"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'uniflow' has no attribute {name!r}")
