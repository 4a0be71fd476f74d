"""The argument parser of all commands: its errors are one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from uniflow.cli import config_files
from uniflow.cli.early import no_such_option
from uniflow.cli.errors import UserError, readable_report
from uniflow.cli.words import check_flags, complete_words

# What a parameter without a type is given stays as it is: jsonargparse would build any class that it names.
set_parsing_settings(instantiate_subclass_spec_in_any=False)
config_files.install()


class Parser(LightningArgumentParser):
    """Raises `UserError` instead of printing the usage, and guesses what a misspelt option was meant to be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """As in jsonargparse, with shipped names, on/off flags and lists completed (`complete_words`)."""
        words = args
        if args is not None and self.exit_on_error:
            args = complete_words(self, args)
        try:
            config = super().parse_args(args, *rest, **kwargs)
            if words is not None and args is not None:
                check_flags(config, words, args)
            return config
        except RecursionError as error:
            raise UserError("a configuration refers to itself, or is nested too deeply") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = self._explain(message)
        if not self.exit_on_error:  # an inner parser: jsonargparse catches this and reports it further up
            super().error(message, ex)
        raise UserError(readable_report(message)) from ex

    def parse_path(self, *args: Any, **kwargs: Any) -> Namespace:
        """As in jsonargparse; an error names the file."""
        try:
            return super().parse_path(*args, **kwargs)
        except UserError as error:
            path = args[0] if args else kwargs.get("cfg_path")
            raise UserError(f"{path}: {error}") from error

    def _explain(self, message: str) -> str:
        """`message`, with the closest known option."""
        if match := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            return no_such_option(match[1], self._option_string_actions)
        if match := re.fullmatch(r"Option '([^']+)' is not accepted", message):
            known = [action.dest for action in self._actions if action.dest != "help" and ".help" not in action.dest]
            close = difflib.get_close_matches(match[1], known, n=1)
            guess = f"; did you mean {close[0]}?" if close else ";"
            shown = ", ".join(known) if len(known) <= 24 else ""
            return f"there is no argument {match[1]!r}{guess}" + (f" known: {shown}" if shown else "")
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            names = [name.split(".", 1)[-1] if self.exit_on_error else name for name in match[1].split(", ")]
            return f"nothing is given for {', '.join(names)}; a recipe (-c RECIPE.yaml) or an option must"
        return message
