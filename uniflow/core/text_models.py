"""Text models of Hugging Face transformers: a hub id, a folder or a GGUF file. Nothing is unpickled, no code is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from uniflow.core.errors import one_line
from uniflow.core.files import check_folder
from uniflow.core.tensors import refuse_nonfinite


def read_text_model(
    auto: str,
    name: str,
    gguf_file: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    *,
    what: str = "language model",
    local_only: bool = False,
) -> tuple[Any, Any]:
    """A model in evaluation mode on the CPU, and its tokenizer.

    Args:
        auto: the class of transformers that makes the model, such as "AutoModel".
        name: hub id, or a folder. With HF_HUB_OFFLINE=1 only local files and the cache are looked at.
        gguf_file: name of a GGUF file in it, which is turned into plain weights (needs the package gguf).
        dtype: of the weights.
        revision: branch, tag or commit on the hub.
        what: it is called in errors.
        local_only: whether to look at local files and the cache alone.

    Raises:
        ValueError: if there is no such model, or it cannot be read.
        ImportError: if transformers is not installed.
    """
    transformers = require_transformers()
    where = _where(gguf_file, revision, local_only)
    weights = {} if gguf_file else {"use_safetensors": True}
    check_folder(name)
    try:
        with without_bars():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
            model = getattr(transformers, auto).from_pretrained(
                name, dtype=getattr(torch, dtype), trust_remote_code=False, **where, **weights
            )
    except Exception as error:  # transformers and the hub's client raise errors of many kinds
        raise _unreadable(name, gguf_file, what, error) from error
    refuse_nonfinite(dict(model.named_parameters()), name)
    if gguf_file:
        _forget_quantization(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def read_text_config(name: str, gguf_file: str | None = None, revision: str | None = None, *, what: str) -> Any:
    """The config of a text model alone; arguments and errors as of `read_text_model`."""
    transformers = require_transformers()
    check_folder(name)
    try:
        with without_bars():
            return transformers.AutoConfig.from_pretrained(
                name, trust_remote_code=False, **_where(gguf_file, revision, False)
            )
    except Exception as error:
        raise _unreadable(name, gguf_file, what, error) from error


def _where(gguf_file: str | None, revision: str | None, local_only: bool) -> dict[str, Any]:
    given = {"gguf_file": gguf_file, "revision": revision, "local_files_only": local_only}
    return {name: value for name, value in given.items() if value}


def _unreadable(name: str, gguf_file: str | None, what: str, error: Exception) -> ValueError:
    path = str(Path(name) / gguf_file) if gguf_file else name
    return ValueError(f"no {what} can be read from {path!r}: {one_line(error, 300)}")


def _forget_quantization(model: Any) -> None:
    """The weights of a GGUF file are plain by now: the model can be saved like any other."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which a small model's files are not worth."""
    logging = require_transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def require_transformers() -> Any:
    """The package transformers.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("language models need transformers: pip install uniflow[language]") from error
    return transformers
