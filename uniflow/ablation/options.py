"""Options of runs, parsed as `uniflow fit` will parse them, without building anything."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import Namespace

from uniflow.ablation.plan import Run
from uniflow.cli.app import UniflowCLI, prepare
from uniflow.cli.errors import UserError


def check_options(runs: Sequence[Run]) -> None:
    """Parse the options of each variant.

    Raises:
        UserError: if `uniflow fit` would refuse them.
    """
    for run in {run.variant: run for run in runs}.values():
        try:
            parse_options(run.recipe_words)
        except UserError as error:
            raise UserError(f"variant {run.variant!r}: {error}") from error


def parse_options(words: list[str]) -> Namespace:
    """The options of `uniflow fit WORDS`, classes by their full paths.

    Raises:
        UserError: if `uniflow fit` would refuse them.
    """
    prepare()
    return _OptionsOnly("fit", words).config["fit"]


class _OptionsOnly(UniflowCLI):
    """Parses the options of a command; builds and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass
