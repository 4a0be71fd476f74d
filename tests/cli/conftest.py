"""`uniflow` in this process: its exit code and what it wrote, and what a command line resolves to."""

from __future__ import annotations

import importlib
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import lightning.pytorch  # noqa: F401  # its loggers, before any test
from jsonargparse import Namespace

from uniflow.cli import main

PROJECT = Path(__file__).parent / "project"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error may write, with nothing but Lightning's notes around it."""
        lines = [line for line in self.err.splitlines() if line.startswith("uniflow: error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert "usage:" not in self.err + self.out
        assert self.code == 2
        return lines[0].removeprefix("uniflow: error: ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's own parts and a tiny recipe."""
    for file in PROJECT.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("UNIFLOW_DEBUG", "UNIFLOW_RUN"):
        monkeypatch.delenv(name, raising=False)
    interrupt = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it after an interrupt


@pytest.fixture
def uniflow(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*args: str) -> Result:
        capfd.readouterr()
        for name in ("lightning.pytorch", "lightning.fabric"):  # they hold on to the stderr of the first import
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        try:
            code = main(list(args))
        except SystemExit as exit_:  # argparse leaves this way after --help and --print_config
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


class _Parsed(Exception):
    pass


@pytest.fixture(scope="session")
def fit_parser() -> Any:
    """The parser of `uniflow fit`."""
    from uniflow.cli import app, swap

    class ParserOnly(app.UniflowCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Parsed(parser)

    swap.install()
    for package in app.PACKAGES:
        importlib.import_module(package)
    with pytest.raises(_Parsed) as caught:
        ParserOnly("fit", [])
    return caught.value.args[0]


@pytest.fixture
def resolve(fit_parser: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Options of `uniflow fit` -> the configuration that they amount to."""

    def call(*args: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(str(Path.cwd()))
        return _plain(fit_parser.parse_args(["fit", *args]).fit)

    return call


def _plain(value: Any) -> Any:
    """Nested dicts, without the paths that jsonargparse remembers and without the list of config files."""
    if isinstance(value, Namespace):
        return {k: _plain(v) for k, v in vars(value).items() if k not in ("__path__", "config")}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "__path__"}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
