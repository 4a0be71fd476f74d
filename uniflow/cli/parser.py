"""The argument parser of all commands: its errors are one line."""

from __future__ import annotations

import difflib
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from uniflow.cli.errors import UserError, one_line


class Parser(LightningArgumentParser):
    """Raises `UserError` in place of printing the usage, and guesses what a misspelt option was meant to be."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an inner parser: jsonargparse catches this and reports it further up
            super().error(message, ex)
        raise UserError(self._explain(message)) from ex

    def _explain(self, message: str) -> str:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0].partition("=")[0]
            close = difflib.get_close_matches(unknown, list(self._option_string_actions), n=1)
            return f"there is no option {unknown}" + (f"; did you mean {close[0]}?" if close else "")
        return one_line(message)
