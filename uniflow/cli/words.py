"""The words of a command line, completed before they are parsed: shipped names, on/off flags, lists, `~/`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace

from uniflow.cli.errors import UserError
from uniflow.cli.shipped import find_file
from uniflow.core.yaml_files import expand_home

_ON_OFF = {"true", "false", "yes", "no", "null"}


def complete_words(parser: Any, words: Sequence[str]) -> list[str]:
    """The command line `words` as jsonargparse takes it.

    - `-c NAME`: a name that is not a file is looked up among the shipped recipes.
    - `--flag` of an on/off option without a value is `--flag=true`; inside of a part (`--model.part.flag`) any option
      without a value, since its type is known later: see `check_flags`.
    - `--option a b c` of an option that takes a list is `--option=[a, b, c]`; one word is a list of one.
    - `~/` at the start of a word is the home directory.
    """
    words = [_at_home(word) for word in words]
    commands = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    if words and words[0] in commands:
        return [words[0], *complete_words(commands[words[0]], words[1:])]
    options = parser._option_string_actions
    done: list[str] = []
    position = 0
    while position < len(words):
        name, equals, value = words[position].partition("=")
        position += 1
        action = options.get(name) if name.startswith("-") else None
        _refuse_empty(action, words, position - 1)
        if action is None:
            is_flag = _is_inner(options, name) and not equals and not _values(words[position : position + 1])
            done.append(f"{name}=true" if is_flag else words[position - 1])
            continue
        values = [value] if equals else _values(words[position:])
        completed, used = _complete(action, name, values)
        done += completed or [words[position - 1]]
        position += 0 if equals else used
    return done


def _refuse_empty(action: Any, words: Sequence[str], position: int) -> None:
    """Refuse an empty path: it would mean the current directory.

    Raises:
        UserError: naming the option.
    """
    name, equals, value = words[position].partition("=")
    if action is None:
        is_value = position > 0 and words[position - 1].startswith("-")
        if not words[position].strip() and not is_value:
            raise UserError("an argument is empty: name a path")
        return
    kinds = _kinds(getattr(action, "_typehint", None))
    values = [value] if equals else _values(words[position + 1 :])
    if values and not all(text.strip() for text in values) and any(Path in (kind, _element(kind)) for kind in kinds):
        raise UserError(f"{name} is empty: name a path, or leave it out")


def check_flags(config: Namespace, words: Sequence[str], completed: Sequence[str]) -> None:
    """Refuse options inside of parts that were given without a value and are not on/off options.

    Args:
        config: what was parsed.
        words: the command line as it was typed.
        completed: what `complete_words` made of it.

    Raises:
        UserError: naming the option.
    """
    for word in completed:
        name, _, value = word.partition("=")
        if value == "true" and "." in name and name in words and _value(config, name) is not True:
            raise UserError(f"{name} needs a value")


def _is_inner(options: Mapping[str, Any], name: str) -> bool:
    """Whether a name that is not an option belongs to a part that is one, as --model.part.flag to --model."""
    parts = name.split(".")
    return name.startswith("--") and any(".".join(parts[:count]) in options for count in range(1, len(parts)))


def _value(config: Any, name: str) -> Any:
    """The value of an option, also inside of the arguments of classes and of a subcommand."""
    value = config.get(config.get("subcommand")) or config
    for part in name.removeprefix("--").split("."):
        inner = value.get("init_args") if part != "init_args" and isinstance(value, Namespace) else None
        value = inner if inner is not None else value
        value = value.get(part) if isinstance(value, Namespace | dict) else None
    return value


def _complete(action: Any, name: str, values: list[str]) -> tuple[list[str], int]:
    """The words of one option and how many of `values` they take; no words if nothing has to be completed."""
    if isinstance(action, ActionConfigFile):
        if values and ":" not in values[0]:  # other text is a configuration itself
            return [name, str(find_file(values[0], "recipe"))], 1
        return [], 0
    kinds = _kinds(getattr(action, "_typehint", None))
    if bool in kinds and (not values or (kinds == {bool} and values[0].lower() not in _ON_OFF)):
        return [f"{name}=true"], 0
    element = next((_element(kind) for kind in kinds if typing.get_origin(kind) in (list, Sequence)), None)
    if element is None or not values or values[0].startswith("[") or values == ["null"]:
        return [], 0
    if len(values) == 1 and len(kinds) > 1:  # a single value may be something else than a list
        return [], 0
    as_text = element in (str, Path) or typing.get_origin(element) is typing.Literal
    items = [json.dumps(value, ensure_ascii=False) if as_text else value for value in values]
    return [f"{name}=[{', '.join(items)}]"], len(values)


def _kinds(hint: Any) -> set[Any]:
    """The types that a union is made of, without None."""
    united = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return {kind for kind in (typing.get_args(hint) if united else (hint,)) if kind is not type(None)}


def _element(kind: Any) -> Any:
    return (typing.get_args(kind) or (str,))[0]


def _values(words: Sequence[str]) -> list[str]:
    """The words up to the next option."""
    values: list[str] = []
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit() and word != "-":
            break
        values.append(word)
    return values


def _at_home(word: str) -> str:
    """`word` with its `~/` expanded, also behind `--option=`.

    Raises:
        UserError: if it is not valid UTF-8.
    """
    if not word.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in word):
        raise UserError(f"{word.encode('utf-8', 'backslashreplace').decode()!r} is not UTF-8 text: rename the file")
    name, equals, value = word.partition("=")
    return f"{name}={expand_home(value)}" if equals and name.startswith("--") else str(expand_home(word))
