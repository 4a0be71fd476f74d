"""Skips a module's tests where lmms-eval is not installed, and imports what it needs past the tests' folders."""

import importlib
import sys

import pytest

pytest.importorskip("lmms_eval", reason="needs lmms-eval: pip install uniflow[lmms-eval]")

# pandas would take the folder tests/bottleneck for its optional package of that name.
_PATH = list(sys.path)
sys.path[:] = [path for path in sys.path if not path.rstrip("/").endswith("tests")]
importlib.import_module("pandas")
sys.path[:] = _PATH
