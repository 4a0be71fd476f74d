"""How jsonargparse reads and writes configuration files: by the strict loader, and a run's folder is where it lies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _loaders_dumpers, _paths, set_dumper

from uniflow.cli.errors import UserError
from uniflow.core.files import read_text
from uniflow.core.yaml_files import LIMIT, ConfigLoader, dump_yaml

RUN_CONFIG = "config.yaml"


def install() -> None:
    """Replace jsonargparse's loader, dumper and reading of files. Idempotent."""
    vars(_loaders_dumpers)["yaml_default_loader"] = ConfigLoader
    _paths.Path.read_text = _read_text  # type: ignore[method-assign]
    set_dumper("yaml", dump_yaml)


def _read_text(self: _paths.Path) -> str:
    try:
        text = read_text(self.absolute, LIMIT)
    except OSError as error:
        raise UserError(str(error)) from error
    return moved_run(text, Path(self.relative), Path(self.cwd))


def moved_run(text: str, file: Path, directory: Path) -> str:
    """A run's saved configuration, for the folder in which it lies now.

    A run's folder may have been renamed or copied since: `run`, and every path inside the old folder, become those of
    the folder that holds the file.

    Args:
        text: content of `file`.
        file: any configuration file, as it was named.
        directory: what relative paths start from.

    Returns:
        `text` itself if it is not a run's configuration, or the run has not moved.
    """
    if file.name != RUN_CONFIG or not re.search(r"^run: ", text, re.MULTILINE):
        return text
    try:
        content = yaml.load(text, ConfigLoader)
    except yaml.YAMLError:
        return text  # the parser reports it
    if not isinstance(content, dict) or not {"run", "ckpt_path", "trainer"} <= set(content):
        return text
    old, new = content["run"], file.expanduser().parent
    if not isinstance(old, str) or (directory / old).resolve() == (directory / new).resolve():
        return text
    inside = {} if os.path.normpath(old) == "." else _relocated(content, old, str(new))
    return dump_yaml({**content, **inside, "run": str(new)})


def _relocated(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _relocated(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_relocated(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old.rstrip('/')}/")):
        return new + value.removeprefix(old.rstrip("/"))
    return value
