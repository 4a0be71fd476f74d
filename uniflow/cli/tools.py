"""The tools beside training: a function's signature is its command line."""

from __future__ import annotations

import importlib
import inspect
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring

from uniflow.cli.errors import UserError, memory_advice, user_errors
from uniflow.cli.supported import check_jsonargparse
from uniflow.core.errors import one_line
from uniflow.core.exit_codes import FAILED
from uniflow.core.yaml_files import ConfigLoader


def run_tool(name: str, target: str, args: list[str]) -> int:
    """Call `target` ("module:function") with the arguments that `args` gives for its signature.

    Parameters without a default are positional, and take any number of values if they are lists or `*names`;
    keyword-only ones and those with a default are options.

    Returns:
        The exit code: what the function returns if that is an int, else 0.
    """
    function = load_function(name, target)
    check_jsonargparse()
    from uniflow.cli import swap  # imports private names, which other versions may not have
    from uniflow.cli.parser import Parser

    swap.install()
    parser = Parser(prog=f"uniflow {name}", description=parse_docstring(function.__doc__ or "").short_description or "")
    positional = _add_positionals(parser, function)
    parser.add_function_arguments(function, skip=set(positional), fail_untyped=False)
    config = parser.parse_args(args)
    with user_errors(), _torch_errors(name):
        values = parser.instantiate(config).as_dict()
        leading = [item for key in positional for item in _values(values.pop(key), key, function)]
        result = function(*leading, **values)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


@contextmanager
def _torch_errors(name: str) -> Iterator[None]:
    """torch's own errors, such as too little memory, as one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("UNIFLOW_DEBUG"):
            raise
        small = "; take a smaller --batch_size or smaller images" if memory_advice(error) else ""
        raise UserError(f"{name}: {one_line(error, 300)}{small} (UNIFLOW_DEBUG=1 shows where)", FAILED) from error


def load_function(name: str, target: str) -> Callable[..., Any]:
    """The function `target` ("module:function") of the command `name`."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{name} is not available: {error}") from error


def _add_positionals(parser: Any, function: Callable[..., Any]) -> list[str]:
    hints = typing.get_type_hints(function)
    descriptions = {p.arg_name.lstrip("*"): p.description for p in parse_docstring(function.__doc__ or "").params}
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        required = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        if not (many or required):
            continue
        hint = hints.get(name, str)
        settings: dict[str, Any] = {"type": hint, "help": descriptions.get(name)}
        if many or typing.get_origin(hint) in (list, Sequence):
            settings["nargs"] = "+"
            settings["type"] = hint if many else typing.get_args(hint)[0]
        parser.add_argument(name, **settings)
        names.append(name)
    return names


def _values(value: Any, name: str, function: Callable[..., Any]) -> list[Any]:
    many = inspect.signature(function).parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
    if isinstance(value, list) and len(value) == 1 and (text := str(value[0])).startswith("["):
        named = yaml.load(text, ConfigLoader) if text.endswith("]") and not os.path.exists(text) else text
        value = [type(value[0])(item) for item in named] if isinstance(named, list) else value
    return list(value) if many else [value]
