"""Read or fetch weights of encoders: safetensors only, and everything must fit, or the error says what does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import timm
from timm.models import load_state_dict_from_hf
from torch import Tensor, nn

from uniflow.core.errors import first_line
from uniflow.core.files import open_regular
from uniflow.core.tensors import refuse_nonfinite

# What timm's files hold after the last block; encoders here end there.
_BEHIND_THE_BLOCKS = ("norm.", "fc_norm.", "head.", "attn_pool.", "pre_logits.", "head_dist.", "mask_token")


def read_safetensors(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; nothing else is accepted, and nothing is unpickled.

    Args:
        path: the file.
        prefix: only tensors whose names start with it are read, and it is removed from the names.

    Raises:
        ValueError: if there is no such file, it is not in the safetensors format, or a value is not finite.
    """
    with _open_safetensors(path) as file:
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118  # it is not a dict
        tensors = {key.removeprefix(prefix): file.get_tensor(key) for key in names}
    refuse_nonfinite(tensors, f"weights: {os.fspath(path)}")
    return tensors


def safetensors_keys(path: str | os.PathLike[str]) -> list[str]:
    """The names of the tensors in a safetensors file; raises as `read_safetensors`."""
    with _open_safetensors(path) as file:
        return list(file.keys())


@contextmanager
def _open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).exists():
        raise ValueError(f"weights: no such file: {os.fspath(path)!r}; give a safetensors file, 'pretrained' or null")
    open_regular(path).close()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"weights: {os.fspath(path)!r} is not a safetensors file ({error}); pickled checkpoints are not read, "
            "convert them with safetensors.torch.save_file"
        ) from error


def read_weights(name: str, weights: str | os.PathLike[str] | None) -> dict[str, Tensor] | None:
    """The tensors that an encoder's argument `weights` stands for: timm's, a file's, or none."""
    if weights is None:
        return None
    return fetch_pretrained(name) if weights == "pretrained" else read_safetensors(weights)


def fetch_pretrained(name: str) -> dict[str, Tensor]:
    """Fetch (or take from the local cache) the weights that timm publishes for `name`.

    Raises:
        ValueError: if timm has no weights for this name, or they can neither be fetched nor found in the cache.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id or cfg.custom_load == "hf":  # "hf": files in another format
        raise ValueError(
            f"weights: timm has no loadable pretrained weights for {name!r}; give a safetensors file or null"
        )
    filename = {"filename": cfg.hf_hub_filename} if cfg.hf_hub_filename else {}
    try:
        return load_state_dict_from_hf(cfg.hf_hub_id, weights_only=True, **filename)
    except Exception as error:  # the hub client raises errors of several HTTP libraries; all are re-raised as one line
        raise ValueError(
            f"weights: cannot fetch the pretrained weights of {name!r} from Hugging Face's {cfg.hf_hub_id}: "
            f"{first_line(error)} "
            "Without network: download its model.safetensors elsewhere and set weights to the path of that file"
        ) from error


def load_timm_state(model: nn.Module, state: dict[str, Tensor], source: str, antialias: bool = True) -> None:
    """Load `state`, in timm's key format, into a timm ViT that has been cut after its last block.

    Final norms and heads in `state` are skipped, a `model.` prefix (of a `TimmEncoder.state_dict()`) is removed, and a
    position embedding of another grid is resampled by timm (bicubic). Everything else must fit exactly.

    Args:
        model: the timm model.
        state: tensors by name.
        source: where they come from, for messages.
        antialias: whether the resampling antialiases.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors.
    """
    if state and all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    expected = model.state_dict()
    patch_weight = state.get("patch_embed.proj.weight")
    # timm would resample patch kernels of another size as well: a different encoder, not the same one on another grid.
    needed = expected.get("patch_embed.proj.weight")  # none with a convolutional stem
    patch_fits = patch_weight is None or (needed is not None and patch_weight.shape == needed.shape)
    if patch_fits:
        state = _timm_filter(model, state, source, antialias)
    state = {key: value for key, value in state.items() if not key.startswith(_BEHIND_THE_BLOCKS)}
    shared = expected.keys() & state.keys()
    refuse_misfits(
        source,
        missing=expected.keys() - shared,
        unexpected=state.keys() - shared,
        misshapen=[(k, state[k].shape, expected[k].shape) for k in shared if state[k].shape != expected[k].shape],
    )
    model.load_state_dict(state)


def refuse_misfits(
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: Iterable[tuple[str, Iterable[int], Iterable[int]]],
) -> None:
    """Raise if tensors do not fit a model, with a report of them; do nothing if there are none.

    Args:
        source: where the tensors come from, for the message.
        missing: names that only the model has.
        unexpected: names that only the source has.
        misshapen: name, shape in the source and shape in the model.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors.
    """
    report = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "misshapen": [f"{key} is {tuple(given)}, needs {tuple(needed)}" for key, given, needed in sorted(misshapen)],
    }
    if any(report.values()):
        lines = [f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in report.items() if keys]
        raise ValueError(f"weights: {source} does not fit this encoder: {'; '.join(lines)}")


def _timm_filter(model: nn.Module, state: dict[str, Tensor], source: str, antialias: bool) -> dict[str, Tensor]:
    """timm's own conversion of checkpoints: other projects' keys, position embeddings of other grids."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, model, antialias=antialias)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"weights: {source} cannot be converted for this encoder: {first_line(error)}") from error


def _shorten(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", and {len(keys) - limit} more" if len(keys) > limit else "")
