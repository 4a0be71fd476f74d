"""The version of jsonargparse that the command line works with."""

from __future__ import annotations

import jsonargparse

from uniflow.cli.errors import UserError

# `uniflow.cli.swap` wraps private functions, which may change with any minor version. pyproject.toml says the same.
REQUIREMENT = "jsonargparse[signatures]>=4.53,<4.54"
SUPPORTED = "4.53"


def check_jsonargparse() -> None:
    """Check the installed version.

    Raises:
        UserError: if it is not supported.
    """
    if jsonargparse.__version__.split(".")[:2] != SUPPORTED.split("."):
        raise unsupported()


def unsupported() -> UserError:
    """The error: what is installed, what is needed, and the command that installs it."""
    return UserError(
        f"jsonargparse {jsonargparse.__version__} is installed, uniflow needs {SUPPORTED}: pip install '{REQUIREMENT}'"
    )
