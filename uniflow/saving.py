"""A tokenizer on disk: a folder of `config.json` and `model.safetensors`, or a checkpoint of a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def write_directory(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a tokenizer's two files into `directory`, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Written beside and moved, so that a kill leaves the old file or the new one, never half of one.
    save_file(plain, directory / f".{WEIGHTS_NAME}", metadata={"format": "pt"})
    (directory / f".{CONFIG_NAME}").write_text(json.dumps(config, indent=2) + "\n")
    # safetensors makes files that only their owner can read; others get the rights that any new file has.
    shutil.copymode(directory / f".{CONFIG_NAME}", directory / f".{WEIGHTS_NAME}")
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        os.replace(directory / f".{name}", directory / name)


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder made by `Tokenizer.save_pretrained`.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if one of them is damaged.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is no tokenizer: it has no {name}")
    try:
        config = json.loads((path / CONFIG_NAME).read_text())
    except ValueError as error:
        raise ValueError(f"{path / CONFIG_NAME} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG_NAME} must hold a JSON object")
    try:
        return config, load_file(path / WEIGHTS_NAME)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS_NAME} is no valid safetensors file: {error}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of the tokenizer in a checkpoint of `uniflow fit`; averaged weights (EMA) where it has them.

    Raises:
        ValueError: if it cannot be read without unpickling, or holds no tokenizer.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a file that is no checkpoint
        raise ValueError(f"{path} is no checkpoint that can be read safely: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "tokenizer" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a uniflow tokenizer")
    weights = {**checkpoint["state_dict"], **checkpoint.get("ema", {})}
    prefix = "tokenizer."
    return checkpoint["tokenizer"], {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load `tensors` into `module`, exactly.

    Raises:
        ValueError: naming the missing, unexpected and misshapen tensors of `path`.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the weights of {path} do not fit its config: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(tensors)
