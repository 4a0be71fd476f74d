"""One row an image."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write `rows` as CSV, or as Parquet if `path` ends so (which needs pyarrow).

    Raises:
        ImportError: for Parquet without pyarrow.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"{path} needs pyarrow: pip install pyarrow; or name a .csv file") from error
        table = {column: [row.get(column) for row in rows] for column in columns}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        return
    # File names may be invalid text on a system that does not use UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
