"""The tools beside training: from a function's signature to a command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from uniflow import cli

CALLS: list[dict[str, Any]] = []


def tool(
    images: list[Path],
    tokenizer: Path | None = None,
    steps: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Look at pictures.

    Args:
        images: the pictures.
        tokenizer: where the weights are.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1,\ngot {steps}")
    CALLS.append({"images": images, "tokenizer": tokenizer, "steps": steps, "device": device})


def starred(source: str, *names: str, strict: bool = False) -> int:
    """Takes any number of names, and returns an exit code."""
    CALLS.append({"source": source, "names": names, "strict": strict})
    return 7


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("some_tools")
    module.tool, module.starred = tool, starred  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_tools", module)
    table = {"peek": ("some_tools:tool", ""), "star": ("some_tools:starred", ""), "gone": ("no_such_module:x", "")}
    monkeypatch.setattr(cli, "TOOLS", cli.TOOLS | table)
    CALLS.clear()


def test_arguments(uniflow: Callable[..., Any]) -> None:
    assert uniflow("peek", "--tokenizer", "RUN/tokenizer", "a.jpg", "b.jpg", "--steps", "4").code == 0
    assert [
        {"images": [Path("a.jpg"), Path("b.jpg")], "tokenizer": Path("RUN/tokenizer"), "steps": 4, "device": "cpu"}
    ] == CALLS
    assert uniflow("star", "folder", "x", "y", "--strict", "true").code == 7
    assert CALLS[1] == {"source": "folder", "names": ("x", "y"), "strict": True}


def test_a_file_for_the_tool_itself_is_not_read_as_a_component(uniflow: Callable[..., Any], project: Path) -> None:
    (project / "lines.json").write_text('{"class_path": 1}\n{"class_path": 2}\n')
    assert uniflow("peek", "a.jpg", "--tokenizer", "lines.json").code == 0
    assert CALLS[0]["tokenizer"] == Path("lines.json")


def test_help(uniflow: Callable[..., Any]) -> None:
    result = uniflow("peek", "--help")
    assert result.code == 0
    for text in ("Look at pictures.", "the pictures.", "--tokenizer", "where the weights are."):
        assert text in result.out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["peek"], "images"),
        (["peek", "a.jpg", "--stps", "3"], "did you mean --steps?"),
        (["peek", "a.jpg", "--steps", "x"], "expected an integer"),
        (["peek", "a.jpg", "--device", "tpu"], "cpu, cuda"),
        (["peek", "a.jpg", "--steps", "0"], "steps must be at least 1, got 0"),
        (["gone"], "no_such_module"),
    ],
)
def test_errors(uniflow: Callable[..., Any], args: list[str], expected: str) -> None:
    assert expected in uniflow(*args).error
    assert not CALLS


@pytest.mark.parametrize("name", sorted(cli.TOOLS))
def test_every_tool_explains_itself(uniflow: Callable[..., Any], name: str) -> None:
    result = uniflow(name, "--help")
    assert result.code == 0, result.err
    assert f"usage: uniflow {name}" in result.out
