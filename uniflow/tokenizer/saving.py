"""A tokenizer on disk: a folder of `config.json` and `model.safetensors`, or a checkpoint of a run; and on the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from uniflow.bottleneck import Bottleneck
from uniflow.core.atomic import replacing
from uniflow.core.errors import one_line
from uniflow.core.files import open_regular
from uniflow.core.imports import import_part
from uniflow.core.json_files import read_json_object
from uniflow.core.part import Part
from uniflow.core.tensors import refuse_nonfinite
from uniflow.core.torch_files import load_plain
from uniflow.decoders.base import PixelDecoder
from uniflow.encoders.base import VisionEncoder
from uniflow.sharding.checkpoint import AVERAGE, MODEL, is_sharded_checkpoint, read_meta
from uniflow.sharding.checkpoint import read_tensors as sharded_tensors

FORMAT = 1
PART_BASES: dict[str, type[Part]] = {"encoder": VisionEncoder, "bottleneck": Bottleneck, "decoder": PixelDecoder}
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def write_directory(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a tokenizer's two files into `directory`, which is made if needed."""
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The weights are put in place first: the block that is entered last ends first.
    with replacing(directory / CONFIG_NAME) as new_config, replacing(directory / WEIGHTS_NAME) as new_weights:
        new_config.write_text(json.dumps(config, indent=2) + "\n")
        save_file(contiguous, new_weights, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read; others get the rights that any new file has.
        shutil.copymode(new_config, new_weights)


def part_classes(config: Mapping[str, Any]) -> dict[str, type[Part]]:
    """The classes of the parts that a tokenizer's `config` names, by name of the part; none is instantiated.

    Raises:
        ValueError: if the config is of another format, or a part is missing or cannot be imported.
    """
    if config.get("format") != FORMAT:
        raise ValueError(f"this uniflow reads tokenizers of format {FORMAT}, not {config.get('format')!r}")
    for name in PART_BASES:
        if not isinstance(config.get(name), Mapping):
            raise ValueError(f"the tokenizer's config names no {name}")
    return {name: import_part(config[name], base) for name, base in PART_BASES.items()}


def without_adapters(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: Mapping[str, type[Part]] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a tokenizer as they are saved: what each part's `plain_state` returns.

    Args:
        config: a tokenizer's `config()`.
        tensors: its state dict; not changed.
        classes: the class of each part, by name; None imports those that the config names.

    Raises:
        ValueError: if a part cannot be imported, or its config and tensors do not fit.
    """
    config, tensors = dict(config), dict(tensors)
    for name, cls in (part_classes(config) if classes is None else classes).items():
        arguments = config[name].get("init_args", {})
        if not isinstance(arguments, Mapping):
            continue  # building the part says what is wrong
        prefix = f"{name}."
        state = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
        plain_arguments, plain_state = cls.plain_state(arguments, state)
        config[name] = {**config[name], "init_args": plain_arguments}
        tensors |= {prefix + key: tensor for key, tensor in plain_state.items()}
    return config, tensors


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Replace the config of a tokenizer's folder, and leave its weights alone."""
    with replacing(directory / CONFIG_NAME) as new:
        new.write_text(json.dumps(config, indent=2) + "\n")


def fetch_directory(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a tokenizer on Hugging Face's hub: its two files and nothing else, from the hub or its cache.

    Without a network, or with HF_HUB_OFFLINE=1, the cache is all there is.

    Args:
        name: "organisation/name".
        revision: branch, tag or commit; None is the main branch.
        cache_dir: folder of the cache instead of the hub's own.
        token: for a private repository; None takes that of `hf auth login`, if there is one.
        force_download: fetch what the cache holds already.
        local_files_only: look into the cache only.

    Raises:
        FileNotFoundError: if neither the hub nor the cache has such a tokenizer.
        OSError: if it cannot be fetched.
    """
    nothing = f"no tokenizer at {name}: there is no such folder or checkpoint here, and"
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(
            f"no tokenizer at {name}: neither a path here nor a valid name on the Hugging Face hub; give a directory "
            f"with {CONFIG_NAME}, a checkpoint, a name such as organisation/name, or embedded for the packaged one"
        )
    files = [CONFIG_NAME, WEIGHTS_NAME]
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                token=token,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=files,
            )
        )
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{nothing} Hugging Face's hub has no {name}, or it is private: then `hf auth login`, or give a token"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} on Hugging Face's hub has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        at = f" --revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{nothing} Hugging Face's hub cannot be reached and its cache does not hold it: where there is a network, "
            f"run `hf download {name} {' '.join(files)}{at} --local-dir FOLDER`, then give that FOLDER"
        ) from error
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise OSError(f"cannot fetch {name} from Hugging Face's hub: {one_line(error, 400)}") from error
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{name} on Hugging Face's hub, or its copy in the cache, has no {file}")
    return folder


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder made by `Tokenizer.save_pretrained`, or of a sharded checkpoint.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if one of them is damaged.
    """
    if is_sharded_checkpoint(path):
        return read_checkpoint(path)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).exists():
            raise FileNotFoundError(f"{path} is not a tokenizer: it has no {name}")
    return read_json_object(path / CONFIG_NAME), read_tensors(path / WEIGHTS_NAME)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: if it is not such a file.
        OSError: if there is no such file, or it is not a regular one.
    """
    open_regular(path).close()
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of the tokenizer in a checkpoint of `uniflow fit`, a file or, of a sharded run, a folder;
    averaged weights (EMA) where it has them.

    Raises:
        ValueError: if it cannot be read without unpickling, or holds no tokenizer.
    """
    content = checkpoint_content(path)
    config, state, ema = content.get("tokenizer"), content.get("state_dict"), content.get("ema", {})
    if not (isinstance(config, dict) and isinstance(state, dict) and isinstance(ema, dict)):
        raise ValueError(f"{path} is not a checkpoint of a uniflow tokenizer")
    prefix = "tokenizer."
    weights = {k: v for k, v in {**state, **ema}.items() if isinstance(k, str) and k.startswith(prefix)}
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds weights that are not tensors")
    return config, {name.removeprefix(prefix): value for name, value in weights.items()}


def checkpoint_content(path: Path) -> dict[str, Any]:
    """What is in a checkpoint, a file or a folder, but for the optimizer's state of a folder; empty if it is no dict.

    Raises:
        ValueError: if it cannot be read without unpickling.
    """
    if path.is_dir():
        weights = {key: sharded_tensors(path, prefix) for key, prefix in (("state_dict", MODEL), ("ema", AVERAGE))}
        return read_meta(path) | weights
    checkpoint = load_plain(path)
    return checkpoint if isinstance(checkpoint, dict) else {}


class AllocationLimit(TorchDispatchMode):
    """While active, limit the bytes of new tensors in total; a tensor beyond the limit is refused before it is made.

    For configs that describe a model far larger than their weights.

    Args:
        path: the file or folder of the weights; at most eight times its size is allocated, and 64 MiB on top.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if is_sharded_checkpoint(path):
            self.size = sum(piece.stat().st_size for piece in path.glob("*.distcp"))
        else:
            self.size = (path / WEIGHTS_NAME if path.is_dir() else path).stat().st_size
        self.left = 8 * self.size + 2**26

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for size in _new_storages(func, args, kwargs):
            self.left -= max(size, 2**15)  # many small ones also cost memory and time
            if self.left < 0:
                raise ValueError(f"its config describes a model far larger than its {self.size} bytes of weights")
        return func(*args, **kwargs)


def _new_storages(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Bytes of each storage that an operator would allocate, from a run on the meta device, which allocates nothing."""
    if all(made.alias_info is not None and made.alias_info.is_write for made in func._schema.returns):
        return []  # in place: the meta device is slow for the many that fill new weights
    given, options = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        options |= {"device": torch.device("meta")}
    try:
        made = func(*given, **{name: value for name, value in options.items() if name != "generator"})
    except (RuntimeError, TypeError):  # its result depends on values, of which there are none, or its arguments are bad
        return []
    old = {leaf.untyped_storage()._cdata for leaf in tree_leaves((given, options)) if isinstance(leaf, Tensor)}
    storages = [leaf.untyped_storage() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
    return [storage.nbytes() for storage in storages if storage._cdata not in old]


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load `tensors` into `module`, exactly. Floating-point numbers are cast to the module's own type.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors of `path`, those of the wrong kind, and those
            with values that are not finite.
    """
    check_fit(module.state_dict(), tensors, path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:  # sparse, quantised or without data
        raise ValueError(f"the weights of {path} cannot be loaded: {one_line(error, 400)}") from error
    refuse_nonfinite(module.state_dict(), path)  # in the module's own type, which may hold less


def check_fit(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, what: str = "its config"
) -> None:
    """Compare the `tensors` of `path` with the `expected` ones of a model: names, shapes, kinds of numbers.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors, and those of the wrong kind.
    """
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems += [
        f"{name} is {tensors[name].dtype}, not {expected[name].dtype}"
        for name in expected
        if name in tensors
        and tensors[name].dtype != expected[name].dtype
        and not (tensors[name].is_floating_point() and expected[name].is_floating_point())
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the weights of {path} do not fit {what}: {'; '.join(problems[:5])}{more}")
