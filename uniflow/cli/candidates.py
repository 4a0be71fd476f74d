"""What to say when a slot is given a class that does not exist or does not fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse._typehints import get_all_subclass_paths, get_subclass_types
from jsonargparse._util import import_object

from uniflow.cli.shipped import shipped, suggestion
from uniflow.core.moved import RENAMED

FILE_SUFFIXES = (".yaml", ".yml", ".json")


def class_problem(value: Any, typehint: Any) -> str | None:
    """Why `value` names no class for a slot of type `typehint`, in one line; None if the class is not the problem."""
    bases = get_subclass_types(typehint, also_containers=True, callable_return=True)
    if not bases:
        return None
    for name in _class_names(value):
        problem = _name_problem(name, bases)
        if problem is not None:
            return problem
    return None


def _class_names(value: Any) -> list[str]:
    """The class names in a value as it was given: a name, a mapping with class_path, or a list of these."""
    if isinstance(value, list):
        return [name for item in value for name in _class_names(item)]
    if isinstance(value, str):
        return [value]
    if hasattr(value, "get"):
        name = value.get("class_path")
        return [name] if isinstance(name, str) else []
    return []


def _name_problem(name: str, bases: tuple[type, ...]) -> str | None:
    kind = " or ".join(dict.fromkeys(base.__name__ for base in bases))
    known = known_classes(bases)
    if name.endswith(FILE_SUFFIXES):
        return f"there is no file {name!r} with a {kind}{suggestion(name, 'component')}"
    if "." not in name:
        return (
            None
            if name in known or RENAMED.get(name) in known
            else f"no {kind} is called {name!r}{_suggestion(name, known)}"
        )
    try:
        named = import_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        return f"cannot import the {kind} {name!r} ({error}){_suggestion(name.rpartition('.')[2], known)}"
    if inspect.isclass(named) and not issubclass(named, bases):
        return f"{name} is not a {kind}{_suggestion(name.rpartition('.')[2], known)}"
    if inspect.isabstract(named):
        return f"{name} is abstract{_suggestion('', known)}"
    return None


def known_classes(bases: Iterable[type]) -> list[str]:
    """Short names of the concrete subclasses that are imported, without Lightning's own demos."""
    paths = {path for base in bases for path in get_all_subclass_paths(base)}
    return sorted({path.rpartition(".")[2] for path in paths if not path.startswith("lightning.pytorch.demos.")})


def _suggestion(name: str, known: list[str]) -> str:
    starts = {full[: len(name)]: full for full in known}  # "Unifrom" is meant to be UniformWeighting
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(
        name, [Path(file).name for file in shipped("component")], n=1, cutoff=0.7
    )
    close = close or [starts[start] for start in difflib.get_close_matches(name, starts, n=1, cutoff=0.8)]
    guess = f"; did you mean {close[0]}?" if close else ";"
    return f"{guess} known: {', '.join(known) or 'none'}, or a class path such as my_package.MyClass"
