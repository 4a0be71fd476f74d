"""A misspelt option of a tool is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path

from uniflow.cli.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def refuse_unknown_options(target: str, words: Sequence[str]) -> None:
    """Refuse an option whose name, up to a dot, is not an argument of `target` ("uniflow.MODULE:function").

    The function's source is read, not run. What comes after a dot is the parser's to check.

    Raises:
        UserError: naming the option and the closest known one.
    """
    known = _arguments(target)
    if known is None:
        return
    options = [f"--{name}" for name in (*known, "help")]
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0]
        if not option.startswith("--") or option.rstrip("+").partition(".")[0] in options:
            continue
        close = difflib.get_close_matches(option, options, n=1)
        raise UserError(f"there is no option {option}" + (f"; did you mean {close[0]}?" if close else ""))


def _arguments(target: str) -> list[str] | None:
    """The names of a function's arguments; None where its source does not tell all of them."""
    module, _, name = target.partition(":")
    source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not source.is_file():
        return None
    body = ast.parse(source.read_text(encoding="utf-8")).body
    function = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None or function.args.kwarg is not None:
        return None
    arguments = function.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
