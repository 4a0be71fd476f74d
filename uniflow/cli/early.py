"""A misspelt option is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from uniflow.cli.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]

# What comes before a dot in the options of fit, validate, test and predict, all of them together.
RUN_OPTIONS = (
    *("config", "model", "data", "trainer", "run", "ckpt_path", "weights_only", "seed_everything", "print_config"),
    *("verbose", "return_predictions"),
    # The callbacks of every run, then those of tasks.
    *("checkpoint", "best_checkpoint", "preemption", "ema", "images", "stability", "monitor", "results"),
    *("codebook", "export", "latents", "probe", "statistics"),
)


def refuse_unknown_options(known: Iterable[str] | None, words: Sequence[str]) -> None:
    """Refuse an option whose name, up to a dot, is not among `known`; None knows nothing and refuses nothing.

    What comes after a dot is the parser's to check.

    Raises:
        UserError: naming the option and the closest known one.
    """
    if known is None:
        return
    options = [f"--{name}" for name in (*known, "help")]
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0]
        name, dot, inner = option.rstrip("+").partition(".")
        if option.startswith("--") and name not in options:
            raise UserError(no_such_option(option, [near + dot + inner for near in options]))


def no_such_option(option: str, options: Iterable[str]) -> str:
    """What to say of an option that does not exist, with the closest one that does."""
    close = difflib.get_close_matches(option, list(options), n=1)
    return f"there is no option {option}" + (f"; did you mean {close[0]}?" if close else "")


def arguments_of(target: str) -> list[str] | None:
    """The names of the arguments of "uniflow.MODULE:FUNCTION"; None where its source does not tell all of them.

    The source is read, not run.
    """
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
