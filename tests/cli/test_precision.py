"""bfloat16 on a CPU without instructions for it: one warning of `fit`, and another precision in `quickstart`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uniflow.tools import quickstart

FIT = ("fit", "-c", "recipe.yaml", "--trainer.fast_dev_run", "true", "--trainer.precision")


def capability(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@pytest.mark.parametrize(
    ("name", "precision", "warned"),
    [("AVX2", "bf16-mixed", True), ("AVX2", "32-true", False), ("AVX512", "bf16-mixed", False)],
)
def test_fit_warns(
    uniflow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, precision: str, warned: bool
) -> None:
    capability(monkeypatch, name)
    result = uniflow(*FIT, precision)
    assert result.code == 0, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("uniflow: warning: ")]
    assert len(lines) == warned
    if warned:
        assert "bf16-mixed is about 6 times slower" in lines[0]
        assert "use --trainer.precision 32-true" in lines[0]


@pytest.mark.parametrize(
    ("name", "gpu", "overrides", "expected"),
    [
        ("AVX2", False, [], ["--trainer.precision", "32-true"]),
        ("DEFAULT", False, [], ["--trainer.precision", "32-true"]),
        ("AVX512", False, [], []),
        ("AVX2", True, [], []),
        ("AVX2", False, ["--trainer.precision", "bf16-mixed"], []),
        ("AVX2", False, ["--trainer.precision=bf16-mixed"], []),
    ],
)
def test_quickstart_chooses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    gpu: bool,
    overrides: list[str],
    expected: list[str],
) -> None:
    capability(monkeypatch, name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(quickstart, "_command", lambda *words: commands.append(words) or 0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer: {precision: bf16-mixed}")
    assert quickstart.quickstart(recipe, tmp_path / "out", overrides) == 0
    fits = [list(words) for words in commands if words[0] == "fit"]
    assert len(fits) == 4
    for words in fits:
        assert words[5 : 5 + len(expected) + len(overrides)] == [*expected, *overrides]
    if not overrides:
        used = "32-true instead of bf16-mixed" if expected else "bf16-mixed, as"
        assert f"Precision: {used}" in capsys.readouterr().out
