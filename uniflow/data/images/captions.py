"""Where the caption of an image is: a file beside it, as a text or under a key of a JSON object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from uniflow.core.files import read_bytes
from uniflow.core.json_files import parse_json
from uniflow.data.images.reading import ImageReadError

CAPTION = "caption"  # the field of a sample that `TextCondition` reads
MAX_CAPTION = 2**20  # bytes of the file that holds a caption


class CaptionSource(NamedTuple):
    """Where a sample's caption is.

    Attributes:
        field: of a sample in a shard, or the extension of a file beside an image, without the first dot: "txt".
        key: of the JSON object that it holds; None: it is the caption as a text.
    """

    field: str
    key: str | None = None

    @classmethod
    def parse(cls, text: str, owner: str) -> CaptionSource:
        """The source that an argument names: "txt", another field, or "json:KEY".

        Args:
            text: the argument.
            owner: whose argument it is, for the error.

        Raises:
            ValueError: if it names none.
        """
        field, colon, key = text.partition(":")
        if not field or field.startswith((".", "_")) or "/" in field or (colon and not key):
            raise ValueError(f"{owner}: caption must be txt, json:KEY (such as json:caption) or null, not {text!r}")
        return cls(field.lower(), key if colon else None)

    def of_sample(self, raw: Mapping[str, Any], name: str) -> str:
        """The caption of a sample of a shard.

        Args:
            raw: the sample's fields as bytes.
            name: its name in errors.

        Raises:
            ImageReadError: as `text`, or if the sample has no such field.
        """
        if self.field not in raw:
            raise ImageReadError(name, f"no caption: it has no .{self.field}")
        return self.text(raw[self.field], name)

    def beside(self, path: str, name: str) -> str:
        """The caption in the file beside an image: `x.txt` beside `x.jpg`.

        Args:
            path: of the image.
            name: its name in errors.

        Raises:
            ImageReadError: as `text`, or if there is no such file.
        """
        return self.text(read_beside(path, name, self.field), name)

    def text(self, content: bytes, name: str) -> str:
        """The caption that a file holds, without white space around it.

        Raises:
            ImageReadError: if it is empty, not UTF-8 or too large, or the JSON has no text under the key.
        """
        where = f".{self.field}" if self.key is None else f".{self.field} under {self.key!r}"
        if len(content) > MAX_CAPTION:
            raise ImageReadError(name, f"no caption: .{self.field} has more than {MAX_CAPTION:,} bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ImageReadError(name, f"no caption: .{self.field} is not UTF-8 (byte {error.start})") from error
        if self.key is not None:
            text = self._value(text, name)
        if not (text := text.strip()):
            raise ImageReadError(name, f"no caption: {where} is empty")
        return text

    def _value(self, text: str, name: str) -> str:
        try:
            value = parse_json(text, f".{self.field}")
        except ValueError as error:
            raise ImageReadError(name, f"no caption: {error}") from error
        caption = value.get(self.key) if isinstance(value, dict) else None
        if not isinstance(caption, str):
            raise ImageReadError(name, f"no caption: .{self.field} has no text under {self.key!r}")
        try:
            caption.encode()
        except UnicodeEncodeError as error:  # JSON can name half of a pair of code points
            raise ImageReadError(name, f"no caption: .{self.field} has no valid text under {self.key!r}") from error
        return caption


def beside(path: str, field: str) -> str:
    """The path of the file with the extension `field` beside an image, or beside a folder of frames."""
    return f"{path if os.path.isdir(path) else os.path.splitext(path)[0]}.{field}"


def read_beside(path: str, name: str, field: str) -> bytes:
    """The content of the file with the extension `field` beside an image.

    Raises:
        ImageReadError: if there is none, or it cannot be read.
    """
    other = beside(path, field)
    try:
        return read_bytes(other, MAX_CAPTION)
    except FileNotFoundError as error:
        raise ImageReadError(name, f"no caption: there is no {os.path.basename(other)} beside it") from error
    except OSError as error:
        raise ImageReadError(name, f"no caption: {os.path.basename(other)}: {error.strerror or error}") from error
