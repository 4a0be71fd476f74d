"""A misspelt option of a tool is answered without torch; every option that a tool has is let through."""

import importlib
import inspect
import subprocess
import sys

import pytest

from uniflow.cli import RUNS, TOOLS
from uniflow.cli.app import UniflowCLI, prepare
from uniflow.cli.early import RUN_OPTIONS, arguments_of, refuse_unknown_options
from uniflow.cli.errors import UserError


@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_takes_is_let_through_and_nothing_else(name):
    target = TOOLS[name][0]
    module, _, function = target.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    words = [f"--{name}" for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL]
    refuse_unknown_options(
        arguments_of(target), [*words, "a file", "--help", *(f"{word}.inner=1" for word in words), "-c", "--", "--x"]
    )
    with pytest.raises(UserError, match=r"^there is no option --nothing\.of_this"):
        refuse_unknown_options(arguments_of(target), [*words, "--nothing.of_this=3"])


def test_the_options_of_runs_are_those_of_their_parsers():
    known: set[str] = set()

    class Asked(UniflowCLI):
        def parse_arguments(self, parser, args):
            parser = parser._subcommands_action._name_parser_map[self._command]
            names = (option.partition(".")[0] for option in parser._option_string_actions)
            known.update(name.removeprefix("--") for name in names if name.startswith("--"))
            raise InterruptedError

    prepare()
    for command in RUNS:
        with pytest.raises(InterruptedError):
            Asked(command, [])
    assert {*RUN_OPTIONS, "help"} == known


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["reconstruct", "photo.jpg", "--tokeniser", "x"], "--tokeniser; did you mean --tokenizer?"),
        (
            ["fit", "-c", "quickstart", "--trianer.max_steps", "1"],
            "--trianer.max_steps; did you mean --trainer.max_steps?",
        ),
    ],
)
def test_the_closest_option_is_named_before_torch_is_imported(words, answer):
    code = (
        "import sys; from uniflow.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"uniflow: error: there is no option {answer}\n")


def test_what_cannot_be_read_is_left_to_the_parser():
    assert arguments_of("uniflow.tools.nothing:here") is None
    assert arguments_of("uniflow.tools.pack:nothing") is None
    refuse_unknown_options(None, ["--x"])
