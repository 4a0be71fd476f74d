"""The benchmarks are no part of the package: they are imported from the project's folder."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Scripts quiet Lightning for the rest of their process, which here is that of other tests."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)
