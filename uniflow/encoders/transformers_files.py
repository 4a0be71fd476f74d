"""Files of a Hugging Face model: from a local directory, the hub's cache or the hub. Nothing is unpickled or run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from uniflow.core.errors import one_line
from uniflow.core.json_files import read_json_object
from uniflow.encoders.loading import read_safetensors, safetensors_keys
from uniflow.encoders.transformers_towers import Triple

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def locate(name: str, filename: str, offline: bool = False) -> Path | None:
    """The path of one file of a model, or None if the model has no such file, or it is not available offline.

    Args:
        name: a local directory, or a hub id.
        filename: name of the file in it.
        offline: look into the local cache only.

    Raises:
        ValueError: if the hub does not know the model or does not give it to this user.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    if Path(name).is_dir():
        path = Path(name) / filename
        return path if path.is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(name, filename, local_files_only=offline))
    except (EntryNotFoundError, HFValidationError):  # the latter if it cannot be a hub id
        return None
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise ValueError(f"cannot get {filename} of {name!r} from the hub: {one_line(error)}") from error


def read_config(name: str, offline: bool) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises:
        ValueError: if it cannot be read or fetched, or is not a JSON object.
    """
    path = locate(name, "config.json", offline)
    if path is None:
        where = "a directory without config.json" if Path(name).is_dir() else _not_found(offline)
        raise ValueError(f"{name!r} is {where}; give a hub id or a directory with config.json, or the argument config")
    return read_json_object(path)


def read_normalization(name: str, offline: bool) -> tuple[Triple, Triple] | None:
    """Mean and standard deviation that a model's preprocessor subtracts and divides by, if its files say them.

    Raises:
        ValueError: if they are not three numbers each.
    """
    for filename in ("preprocessor_config.json", "processor_config.json"):
        path = locate(name, filename, offline)
        if path is None:
            continue
        content = read_json_object(path)
        content = content.get("image_processor", content)
        if content.get("do_normalize") is False:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if "image_mean" in content and "image_std" in content:
            return triple(content["image_mean"], f"image_mean in {path}"), triple(
                content["image_std"], f"image_std in {path}"
            )
    return None


def triple(values: Any, what: str) -> Triple:
    """`values` as three floats.

    Raises:
        ValueError: if they are not three numbers.
    """
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be three numbers (R, G, B), not {values!r}") from error
    return red, green, blue


def read_tower(name: str, weights: str | os.PathLike[str], patch_embed: str) -> dict[str, Tensor]:
    """The tensors of the vision tower in a model's weights; of other parts and other shards nothing is read.

    Args:
        name: a local directory, or a hub id.
        weights: `pretrained`, or the path of a safetensors file instead of the model's own.
        patch_embed: name of the patch embedding's weight in the tower.

    Returns:
        Tensors by their name in the tower.

    Raises:
        ValueError: if there are no safetensors weights, or not exactly one such tower in them.
    """
    if weights != "pretrained":
        return _read_files([Path(weights)], safetensors_keys(weights), patch_embed, str(weights))
    path = locate(name, _WEIGHTS)
    if path is not None:
        return _read_files([path], safetensors_keys(path), patch_embed, name)
    index = locate(name, _INDEX)
    if index is None:
        where = "holds" if Path(name).is_dir() else f"is {_not_found(False)}, or holds"
        raise ValueError(
            f"weights: {name!r} {where} no {_WEIGHTS} (or {_INDEX}); pickled weights (.bin) are not read, convert them "
            "with safetensors.torch.save_file"
        )
    shard_of = read_json_object(index).get("weight_map")
    if not isinstance(shard_of, dict):
        raise ValueError(f"weights: {index} has no weight_map")
    prefix = _tower_prefix(list(shard_of), patch_embed, name)
    shards = sorted({shard for key, shard in shard_of.items() if key.startswith(prefix)})
    return _read_files([_shard(name, shard) for shard in shards], list(shard_of), patch_embed, name)


def _shard(name: str, filename: str) -> Path:
    path = locate(name, filename)
    if path is None:
        raise ValueError(f"weights: {name!r} has no {filename}, which its {_INDEX} names")
    return path


def _read_files(paths: list[Path], keys: list[str], patch_embed: str, source: str) -> dict[str, Tensor]:
    prefix = _tower_prefix(keys, patch_embed, source)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_safetensors(path, prefix)
    return tensors


def _tower_prefix(keys: list[str], patch_embed: str, source: str) -> str:
    """The prefix of the names of the tower's tensors, which that of its patch embedding shows."""
    prefixes = [k.removesuffix(patch_embed) for k in keys if k == patch_embed or k.endswith(f".{patch_embed}")]
    if len(prefixes) != 1:
        number = f"{len(prefixes)} ({', '.join(sorted(prefixes))})" if prefixes else "none"
        raise ValueError(f"weights: {source!r} must hold one vision tower with a {patch_embed}, found {number}")
    return prefixes[0]


def _not_found(offline: bool) -> str:
    reach = "weights null looks no further" if offline else "the hub cannot be reached or has none"
    return f"not a local directory and not in the Hugging Face cache ({reach})"
