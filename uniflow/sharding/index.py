"""The index of a checkpoint in pieces, `.metadata`: a pickle that is read without making any of the objects it names.

A whitelist of classes is not enough: a pickle can also set attributes of the classes and functions that it may name,
such as `pathlib.Path.exists`, in the whole process. So every name stands for a record made for this one reading, which
remembers its arguments and its state. The index is built from the records afterwards, checked value by value.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from uniflow.core.files import open_regular, read_bytes

# What the index of a checkpoint is made of, by module.
_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}  # fmt: skip


def read_index(path: Path) -> Metadata:
    """The index in a file.

    Raises:
        ValueError: if it holds anything else, points outside of its folder, or describes more than its pieces hold.
        OSError: if it cannot be read.
    """
    data = read_bytes(path)
    try:
        metadata = _metadata(_Unpickler(io.BytesIO(data)).load())
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} is not the index of a checkpoint, or holds more than that ({error})") from error
    pieces = {info.relative_path for info in metadata.storage_data.values()}
    for piece in sorted(pieces):
        if Path(piece).name != piece:
            raise ValueError(f"{path} points outside of its folder: {piece}")
    _check_size(path, metadata, pieces)
    return metadata


class _Record:
    """What the pickle says of one object."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Self:
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._kinds: dict[str, type[_Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout):
            return getattr(torch, name)
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in it")
        return self._kinds.setdefault(name, type(name, (_Record,), {}))


def _state(record: Any, name: str, *fields: str) -> list[Any]:
    """The values of `fields` of a record of the class `name`."""
    if type(record).__name__ != name or not isinstance(record, _Record) or not isinstance(record.state, dict):
        raise ValueError(f"expected a {name}")
    return [record.state.get(field) for field in fields]


def _metadata(record: Any) -> Metadata:
    fields = ("state_dict_metadata", "storage_data", "planner_data")
    entries, stored, planner_data = (_dict(value) for value in _state(record, "Metadata", *fields))
    return Metadata(
        state_dict_metadata={_plain(name, str): _entry(entry) for name, entry in entries.items()},
        planner_data={_plain(name, str): _path(path) for name, path in planner_data.items()},
        storage_data={_key(key): _info(info) for key, info in stored.items()},
        storage_meta=StorageMeta(),
    )


def _entry(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(record).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    properties, size, chunks = _state(record, "TensorStorageMetadata", "properties", "size", "chunks")
    dtype = properties.state[0]
    pairs = [_state(chunk, "ChunkStorageMetadata", "offsets", "sizes") for chunk in _plain(chunks, list)]
    return TensorStorageMetadata(
        TensorProperties(dtype=_plain(dtype, torch.dtype)),
        _size(size),
        [ChunkStorageMetadata(_size(offsets), _size(sizes)) for offsets, sizes in pairs],
    )


def _key(record: Any) -> MetadataIndex:
    name, offset, index = _state(record, "MetadataIndex", "fqn", "offset", "index")
    return MetadataIndex(_plain(name, str), None if offset is None else _size(offset), index and _count(index))


def _info(record: Any) -> _StorageInfo:
    path, offset, length, transforms = _state(
        record, "_StorageInfo", "relative_path", "offset", "length", "transform_descriptors"
    )
    if transforms:
        raise ValueError("its pieces are compressed, which this project does not write")
    return _StorageInfo(_plain(path, str), _count(offset), _count(length))


def _size(record: Any) -> torch.Size:
    if type(record).__name__ != "Size":
        raise ValueError("expected a Size")
    return torch.Size([_count(side) for side in record.arguments[0]])


def _path(path: Any) -> tuple[str | int, ...]:
    """Where a value lies in a nested state dict."""
    return tuple(part if isinstance(part, str) else _count(part) for part in _plain(path, tuple))


def _dict(value: Any) -> dict[Any, Any]:
    return {} if value is None else _plain(value, dict)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def _check_size(path: Path, metadata: Metadata, pieces: set[str]) -> None:
    """Refuse an index of tensors that are larger than the files, before memory for them is allocated."""
    held = 0
    for piece in pieces:
        if (path.parent / piece).exists():  # reading says which one is missing
            with open_regular(path.parent / piece) as file:
                held += file.seek(0, io.SEEK_END)
    tensors = [entry for entry in metadata.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
    described = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors)
    if described > held and all((path.parent / piece).exists() for piece in pieces):
        raise ValueError(f"{path} describes {described} bytes of tensors, and its pieces have {held}")
