"""docs/parity.md, and the script that writes it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from official_reference import tolerance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parity.md"


@pytest.fixture(scope="module")
def parity():
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks" / "parity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(page: str) -> dict[str, list[str]]:
    """The cells behind the name of each row of the page's tables, without their heads."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: values for name, *values in cells if name != "value"}


def check(found: dict[str, list[str]]) -> None:
    limits = [float(value) for value in found.pop("tolerance")]
    assert limits[:2] == [tolerance(dtype, reference_frequencies=True) for dtype in (torch.float32, torch.float64)]
    assert len(found) > 25
    for name, values in found.items():
        numbers = [None if value == "–" else float(value) for value in values]
        assert any(number is not None for number in numbers), name
        assert all(number is None or number <= limit for number, limit in zip(numbers, limits, strict=True)), name


def test_the_committed_page_is_within_its_tolerances():
    check(rows(PAGE.read_text()))


def test_the_script_writes_the_same_rows(parity, tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path / "parity.md")]) == 0
    fresh = (tmp_path / "parity.md").read_text()
    assert rows(fresh).keys() == rows(PAGE.read_text()).keys()
    check(rows(fresh))
    assert all(word in fresh for word in ("torch", torch.__version__, "make parity"))


def test_a_difference_above_its_tolerance_fails(parity, monkeypatch, capsys):
    monkeypatch.setattr(parity, "measure", lambda ours, theirs: {"value": [2e-5, 0.0, 0.0, None]})
    assert parity.main([]) == 1
    assert "| `value` | 2.0e-05 | 0 | 0 | – |" in capsys.readouterr().out


def test_a_value_that_is_no_number_is_no_parity(parity):
    nan, one = {"value": torch.tensor(torch.nan)}, {"value": torch.tensor(1.0)}
    with pytest.raises(ArithmeticError, match="value is not finite"):
        parity.measure(lambda dtype: nan, lambda dtype: one)
