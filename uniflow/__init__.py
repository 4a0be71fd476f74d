"""uniflow: turn any pretrained vision encoder into a unified visual tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uniflow.version import __version__

if TYPE_CHECKING:
    from uniflow.tokenizer import Tokenizer

__all__ = ["Tokenizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `uniflow --version` need not wait for torch.
    if name == "Tokenizer":
        from uniflow.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module 'uniflow' has no attribute {name!r}")
