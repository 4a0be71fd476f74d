"""The tokenizer: its model, its files, its card."""

from uniflow.tokenizer.model import Tokenizer

__all__ = ["Tokenizer"]
