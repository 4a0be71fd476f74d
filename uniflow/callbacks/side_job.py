"""Jobs beside training: if one fails, training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from uniflow.core.errors import one_line, write_trace


@contextmanager
def side_job(trainer: Trainer, name: str) -> Iterator[None]:
    """Turn an error inside into a warning of one line; the trace goes to RUN/error.log.

    Several processes wait for each other in such jobs, so there the error is raised.
    """
    try:
        yield
    except Exception as error:
        if trainer.world_size > 1:
            raise
        log = write_trace(Path(trainer.default_root_dir), error)
        rank_zero_warn(f"{name} failed: {type(error).__name__}: {one_line(error, 300)}; the run goes on (trace: {log})")
