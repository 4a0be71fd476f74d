"""Samples of tar files, read in bounded memory; an archive that is cut off or damaged is noticed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, cast

from webdataset.gopen import gopen

from uniflow.core.errors import one_line
from uniflow.core.files import open_regular, printable
from uniflow.data.errors import DataError
from uniflow.data.images.reading import EXTENSIONS, MAX_BYTES

RawSample = dict[str, Any]  # fields as bytes by their names after the first dot, "__key__" and "__url__"

_MAX_HEADER = 2**20  # bytes of a long file name
_COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


class BrokenShardError(ValueError):
    """A tar file that is cut off or damaged."""


def read_samples(url: str, max_bytes: int = MAX_BYTES, contents: bool = True) -> Iterator[RawSample]:
    """The samples of a shard: neighbouring files whose names are the same up to the first dot of the base name.

    Hidden files (`.DS_Store`, `._x.jpg`) and files without an extension are not part of a sample.

    Args:
        url: a path or URL, as webdataset takes them.
        max_bytes: largest file in the shard.
        contents: False: all fields are empty, which is faster.

    Raises:
        BrokenShardError: if the shard cannot be opened, is not a tar file, ends before its end-of-archive block, is
            damaged, has a file larger than `max_bytes`, or has a file twice.
    """
    sample: RawSample | None = None
    for name, content in _members(url, max_bytes, contents):
        folder, slash, base = name.rpartition("/")
        stem, dot, field = base.partition(".")
        if not stem or not dot or field.startswith("__"):
            continue
        key, field = folder + slash + stem, field.lower()
        if sample is None or sample["__key__"] != key:
            if sample is not None:
                yield sample
            sample = {"__key__": key, "__url__": url}
        if field in sample:
            raise BrokenShardError(f"the file {name} is in it twice")
        sample[field] = content
    if sample is not None:
        yield sample


def image_field(
    raw: RawSample, wanted: str | None = None, extensions: Collection[str] = EXTENSIONS, noun: str = "image"
) -> str | None:
    """The field that is the image of a sample, or what else has one of the `extensions`; None if there is none.

    It is `wanted`, or else the only field whose whole name is an image's extension, or else the only one that ends in
    one. So `x.jpg` is the image beside `x.depth.png`.

    Raises:
        DataError: if several fields could be it.
    """
    if wanted is not None:
        return wanted if wanted in raw else None
    images = [name for name in raw if not name.startswith("__") and "." + name.rsplit(".", 1)[-1] in extensions]
    candidates = [name for name in images if "." not in name] or images
    if len(candidates) > 1:
        listed = ", ".join(candidates[:3]) + (" ..." if len(candidates) > 3 else "")
        raise DataError(
            f"{raw['__url__']}: the sample {raw['__key__']} has {len(candidates)} {noun}s ({listed}); a sample's "
            f"name ends at the first dot, so name the field of the {noun} with {noun}_field, or pack the {noun}s again "
            "without dots in their names"
        )
    return candidates[0] if candidates else None


def _members(url: str, max_bytes: int, contents: bool) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files in a tar file, which may be compressed."""
    try:
        with _Stream(_open(url), max_bytes) as stream:
            with tarfile.TarFile.taropen("shard", "r", cast(Any, stream)) as tar:
                while (member := tar.next()) is not None:
                    if member.isreg() and not member.name.startswith("__"):
                        if member.size > max_bytes:
                            raise BrokenShardError(f"{member.name} has {member.size:,} bytes, more than {max_bytes:,}")
                        file = tar.extractfile(member) if contents else None
                        yield printable(member.name), file.read() if file else b""
                    tar.members = []  # type: ignore[attr-defined]
            if len(stream.last) < tarfile.BLOCKSIZE:
                raise BrokenShardError(
                    f"it is cut off after {stream.position:,} bytes, before its end-of-archive block"
                )
            if stream.last.strip(b"\0"):
                raise BrokenShardError(f"the header before byte {stream.position:,} is damaged")
    except BrokenShardError:
        raise
    except Exception as error:  # tarfile, the decompressors, curl and the cloud clients each have their own errors
        raise BrokenShardError(one_line(error, 300)) from error


def _open(url: str) -> BinaryIO:
    if is_local(url):
        return open_regular(local_path(url))
    return cast(BinaryIO, gopen(url))


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine."""
    return ":" not in url or url.startswith("file:") or (len(url) > 1 and url[1] == ":") or os.path.exists(url)


def local_path(url: str) -> str:
    """The path that a local URL stands for."""
    return url.removeprefix("file://").removeprefix("file:")


class _Stream:
    """A file that is read once from its start to its end, uncompressed, and never much of it at a time.

    Attributes:
        position: bytes read or passed over so far.
        last: the bytes that the last call of `read` returned.
    """

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.raw, start = file, file.read(6)
        self.seekable = isinstance(file, io.BufferedReader)  # a local file, not what curl writes
        if self.seekable:
            file.seek(0)
        self.file: Any = file if self.seekable else _Rewound(start, file)
        for magic, reader in _COMPRESSED:
            if start.startswith(magic):
                self.file, self.seekable = reader(self.file), False
        self.limit = max(max_bytes, _MAX_HEADER)
        self.position, self.last = 0, b""

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # webdataset raises one if curl had bytes left that nobody needs
            self.raw.close()

    def read(self, size: int) -> bytes:
        if size > self.limit:  # the name of a file, as a damaged or hostile header has it
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        parts = []
        while size > 0 and (part := self.file.read(size)):  # a pipe gives less than it is asked for
            parts.append(part)
            size -= len(part)
        self.last = b"".join(parts)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if self.seekable:
            self.position = self.raw.seek(position)
        while self.position < position and self.read(min(2**20, position - self.position)):
            pass

    def tell(self) -> int:
        return self.position


class _Rewound:
    """A file whose first bytes were read already, with them again at its start."""

    def __init__(self, start: bytes, file: BinaryIO) -> None:
        self.start, self.file = start, file

    def read(self, size: int = -1) -> bytes:
        if not self.start:
            return self.file.read(size)
        part, self.start = (self.start, b"") if size < 0 else (self.start[:size], self.start[size:])
        return part
