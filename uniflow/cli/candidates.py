"""What to say when a slot is given a class that does not exist or does not fit."""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from jsonargparse._typehints import get_all_subclass_paths, get_subclass_types
from jsonargparse._util import import_object

from uniflow.cli.shipped import shipped, suggestion
from uniflow.core.errors import listed
from uniflow.core.moved import RENAMED
from uniflow.core.numbers import RangedNumber

FILE_SUFFIXES = (".yaml", ".yml", ".json")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def value_problem(value: Any, typehint: Any) -> str | None:
    """Why `value` is not a value for `typehint`, in one line; None if jsonargparse's own report says more."""
    names_class = hasattr(value, "get") or (isinstance(value, str) and re.fullmatch(r"[A-Z]\w*|\w+(\.\w+)+", value))
    plain = not names_class and isinstance(value, str | int | float | list) and not _holds_mapping(value)
    kinds = describe(typehint)
    if plain and kinds and not (isinstance(value, str) and value.endswith(FILE_SUFFIXES)):
        classes_only = all(kind.startswith("a class") for kind in kinds)
        if not classes_only:
            return f"expected {' or '.join(kinds)}, got {shorten(str(value), 80, placeholder=' ...')!r}"
    return class_problem(value, typehint)


def describe(typehint: Any) -> list[str]:
    """What a type accepts, in words; empty if it accepts what has no short name."""
    origin, inner = typing.get_origin(typehint), typing.get_args(typehint)
    if origin in (typing.Union, types.UnionType):
        choices = [
            choice for kind in inner if typing.get_origin(kind) is typing.Literal for choice in typing.get_args(kind)
        ]
        words = [f"one of {', '.join(str(choice) for choice in choices)}"] if choices else []
        words += [word for kind in inner if typing.get_origin(kind) is not typing.Literal for word in describe(kind)]
        return list(dict.fromkeys(words))
    if origin is typing.Literal:
        return [f"one of {', '.join(str(choice) for choice in inner)}"]
    if isinstance(typehint, type) and issubclass(typehint, RangedNumber):
        return [typehint.text]
    if typehint in _KINDS:
        return [_KINDS[typehint]]
    if typehint is type(None):
        return ["null"]
    if origin in (list, Sequence, Iterable):
        return [f"a list, each {(describe(inner[0]) or ['a value'])[0]}"]
    if origin is tuple:
        return [f"[{', '.join('...' if kind is Ellipsis else (describe(kind) or ['value'])[0] for kind in inner)}]"]
    bases = get_subclass_types(typehint, also_containers=True, callable_return=True)
    return [f"a class such as {base.__name__}" for base in bases or () if base.__name__ != "Tensor"]


def function_problem(value: Any, typehint: Any) -> str | None:
    """Why `value`, which names a function, is refused for a slot that takes a class; None if it does not."""
    names = [name for name in _class_names(value) if "." in name]
    bases = get_subclass_types(typehint, also_containers=True, callable_return=True) if names else None
    for name in names if bases else ():
        if not inspect.isclass(import_object(name)):
            return f"{name} is not a class: {' or '.join(base.__name__ for base in bases or ())} is expected"
    return None


def class_problem(value: Any, typehint: Any) -> str | None:
    """Why `value` names no class for a slot of type `typehint`, in one line; None if the class is not the problem."""
    bases = get_subclass_types(typehint, also_containers=True, callable_return=True)
    if not bases:
        return None
    for name in _class_names(value):
        if _is_number(name):  # out of the range of `float | Schedule`
            continue
        problem = _name_problem(name, bases)
        if problem is not None:
            return problem
    return None


def _is_number(text: str) -> bool:
    try:
        float(text.replace(".inf", "inf").replace(".nan", "nan"))  # YAML's spelling too
    except ValueError:
        return False
    return True


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
    if not (inspect.isclass(named) and issubclass(named, bases)):
        return f"{name} is not a {kind}{_suggestion(name.rpartition('.')[2], known)}"
    if inspect.isabstract(named):
        return f"{name} is abstract{_suggestion('', known)}"
    return None


def known_classes(bases: Iterable[type]) -> list[str]:
    """Short names of the concrete subclasses that are imported, ours first, without Lightning's own demos."""
    paths = {path for base in bases for path in get_all_subclass_paths(base)}
    ours = {path.rpartition(".")[2] for path in paths if path.startswith("uniflow.")}
    others = {path.rpartition(".")[2] for path in paths if not path.startswith("lightning.pytorch.demos.")}
    return sorted(ours) + sorted(others - ours)


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, list) and any(hasattr(item, "get") for item in value)


def _suggestion(name: str, known: list[str]) -> str:
    starts = {full[: len(name)]: full for full in known}  # "Unifrom" is meant to be UniformWeighting
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [starts[start] for start in difflib.get_close_matches(name, starts, n=1, cutoff=0.8)]
    files = [Path(file).name for file in shipped("component")]
    close = close or difflib.get_close_matches(name, files, n=1, cutoff=0.7)
    guess = f"; did you mean {close[0]}?" if close else ";"
    return f"{guess} known: {listed(known)}, or a class path such as my_package.MyClass"
