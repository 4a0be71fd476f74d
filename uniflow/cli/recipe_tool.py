"""Tools that take the options of `uniflow fit` and those of one plain function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from docstring_parser import parse as parse_docstring
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from uniflow.cli.app import UniflowCLI, callback_options
from uniflow.cli.errors import UserError


class RecipeTool(UniflowCLI):
    """Parses a recipe (also RUN/config.yaml) and the options of a function, and builds the parts the tool uses.

    After construction, `model`, `datamodule` and `trainer` are what the recipe describes (None where the tool does not
    use it), and `arguments` are the values for `function`.

    Args:
        name: name of the command.
        function: its parameters and docstring are the tool's options and their help.
        args: the command line.
        skip: parameters of `function` that are not options.
    """

    # Whether the tool needs a model or data; the other one may be missing, and is not built.
    needs_model, needs_data = False, False

    def __init__(self, name: str, function: Callable[..., Any], args: list[str], skip: set[str]) -> None:
        self._function, self._skip = function, skip
        super().__init__(name, args, run=False)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        settings: dict[str, Any] = {"subclass_mode": True}
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(LightningModule, "model", required=self.needs_model, **settings)
        parser.add_lightning_class_args(LightningDataModule, "data", required=self.needs_data, **settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.description = parse_docstring(self._function.__doc__ or "").short_description
        self._names = parser.add_function_arguments(self._function, skip=set(self._skip))
        for name in {"ckpt_path", "weights_only"} - set(self._names):  # every RUN/config.yaml has them
            parser.add_argument(f"--{name}", type=Any, help=argparse.SUPPRESS)

    def before_instantiate_classes(self) -> None:
        if self.config.get("weights_only") is False:
            raise UserError("weights_only: false would run code that a checkpoint holds; leave it out")
        unused = [name for name, needed in (("model", self.needs_model), ("data", self.needs_data)) if not needed]
        for name in (*unused, *callback_options()):
            self.config[name] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The values of the function's options."""
        return {name: self.config_init[name] for name in self._names}
