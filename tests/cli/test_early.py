"""A misspelt option of a tool is answered without torch; every option that a tool has is let through."""

import importlib
import inspect
import subprocess
import sys

import pytest

from uniflow.cli import TOOLS
from uniflow.cli.early import refuse_unknown_options
from uniflow.cli.errors import UserError


@pytest.mark.parametrize("name", TOOLS)
def test_what_a_tool_takes_is_let_through_and_nothing_else(name):
    target = TOOLS[name][0]
    module, _, function = target.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    words = [f"--{name}" for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL]
    refuse_unknown_options(
        target, [*words, "a file", "--help", *(f"{word}.inner=1" for word in words), "-c", "--", "--x"]
    )
    with pytest.raises(UserError, match=r"^there is no option --nothing\.of_this"):
        refuse_unknown_options(target, [*words, "--nothing.of_this=3"])


def test_the_closest_option_is_named_before_torch_is_imported():
    code = (
        "import sys; from uniflow.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; "
        "sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "reconstruct", "photo.jpg", "--tokeniser", "x"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2, "uniflow: error: there is no option --tokeniser; did you mean --tokenizer?\n",
    )  # fmt: skip


def test_what_cannot_be_read_is_left_to_the_parser():
    refuse_unknown_options("uniflow.tools.nothing:here", ["--x"])
    refuse_unknown_options("uniflow.tools.pack:nothing", ["--x"])
