"""Tables of questions with their images in base64, as OpenCompass publishes MMBench and MME."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from pathlib import Path

from uniflow.core.files import open_regular

_LARGEST_CELL = 2**27
_SHORTEST_IMAGE = 65  # characters; anything shorter is the index of the row that holds the image


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a file of tab-separated values; empty and "nan" cells are left out.

    Raises:
        ValueError: if it is not a table in UTF-8.
    """
    limit = csv.field_size_limit(_LARGEST_CELL)
    try:
        with io.TextIOWrapper(open_regular(file), "utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text, delimiter="\t"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a table of tab-separated values: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return [{key: cell for key, cell in row.items() if key and cell not in (None, "", "nan")} for row in rows]


def images_of(rows: list[dict[str, str]], file: Path) -> list[bytes]:
    """The image file of each row; a row may name another one's by its index instead.

    Raises:
        ValueError: naming the row whose image is missing or is not base64.
    """
    cells = {row.get("index", ""): row.get("image", "") for row in rows}
    decoded: dict[str, bytes] = {}
    images = []
    for row in rows:
        index = row.get("index", "")
        owner = index if len(cells[index]) >= _SHORTEST_IMAGE else cells[index]
        if len(cells.get(owner, "")) < _SHORTEST_IMAGE:
            raise ValueError(f"{file}, row with index {index}: no image, and no row {owner!r} with one")
        if owner not in decoded:
            try:
                decoded[owner] = base64.b64decode(cells[owner], validate=True)
            except binascii.Error as error:
                raise ValueError(f"{file}, row with index {owner}: its image is not base64 ({error})") from error
        images.append(decoded[owner])
    return images
