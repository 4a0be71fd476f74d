"""Recipes and component files that come with the package, by their short names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import uniflow
from uniflow.cli.errors import UserError
from uniflow.core.errors import listed

Kind = Literal["recipe", "ablation", "component"]
SUFFIXES = (".yaml", ".yml")


def root() -> Path:
    """The folder of the shipped files: in an installed package its own `configs`, in a clone that at the top."""
    package = Path(uniflow.__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@cache
def shipped(kind: Kind) -> dict[str, Path]:
    """Name without suffix, such as `encoders/dinov2_l14` -> file."""
    files = sorted(file for file in root().rglob("*") if file.suffix in SUFFIXES)
    return {file.relative_to(root()).with_suffix("").as_posix(): file for file in files if _kind(file) == kind}


def find(name: str, kind: Kind) -> Path | None:
    """The shipped file that `name` means: by its stem, by its path below `configs/`, or by the path in a clone.

    Args:
        name: `quickstart`, `recipes/real`, `configs/encoders/clip_l14_openai.yaml`, ...
        kind: which files to look among.

    Returns:
        The file; None if there is none of this name.

    Raises:
        UserError: if several files have this name.
    """
    wanted = name.removeprefix("./").removeprefix("configs/")
    wanted = wanted.removesuffix(".yaml").removesuffix(".yml")
    files = shipped(kind)
    if wanted in files:
        return files[wanted]
    same = [known for known in files if known.endswith(f"/{wanted}")] if wanted else []
    if len(same) > 1:
        raise UserError(f"{name!r} may be one of {', '.join(same)}: name one of them")
    return files[same[0]] if same else None


def find_file(name: str, kind: Kind) -> Path:
    """The file `name` if there is one, else the shipped file of that name.

    Raises:
        UserError: if there is neither; it says what is near.
    """
    path = Path(name)
    if os.path.exists(name) and not os.path.isdir(name):  # pathlib raises for names that are too long
        return path
    found = find(name, kind)
    if found is not None:
        return found
    if os.path.isfile(path / "config.yaml"):
        raise UserError(f"{name} is a folder; did you mean {name}/config.yaml?")
    raise UserError(f"there is no file {name!r}, and uniflow ships no {kind} of that name{suggestion(name, kind)}")


def find_component(name: str, slot: str) -> Path | None:
    """The shipped component file that `name` means in the slot `slot`; None if there is none.

    A stem alone, such as `dinov2_l14`, is looked up in the folder of the slot only: `model.encoder` takes those in
    `encoders/`. Any slot takes a path below `configs/`.
    """
    if "/" in name:
        return find(name, "component")
    last = slot.rpartition(".")[2].removeprefix("--")
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    files = shipped("component")
    return next((files[key] for key in (f"{last}s/{stem}", f"{last}/{stem}") if key in files), None)


def suggestion(name: str, kind: Kind) -> str:
    """The nearest shipped names, as the end of a sentence; empty if none is near."""
    stem = Path(name).stem
    stems = {Path(known).name: known for known in shipped(kind)}
    close = difflib.get_close_matches(stem, stems, n=1)
    if close:
        return f"; did you mean {stems[close[0]]}?"
    return f"; known: {listed(list(stems))}" if kind != "component" else ""


def _kind(file: Path) -> Kind:
    parts: Sequence[str] = file.relative_to(root()).parts
    if len(parts) == 1 or parts[0] == "recipes":
        return "recipe"
    return "ablation" if parts[0] == "ablations" else "component"
