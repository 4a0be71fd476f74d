"""Checkpoints in pieces: a folder that several processes write, and any number of processes can read.

The tensors are in torch's distributed checkpoint format, everything else in `meta.pt`. Nothing in it is unpickled but
torch's own description of the pieces, by an unpickler that makes no objects (`uniflow.sharding.index`).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from uniflow.core.torch_files import check_archive_bytes, load_plain
from uniflow.sharding.index import read_index

META_NAME = "meta.pt"
INDEX_NAME = ".metadata"
MODEL = "state_dict."
AVERAGE = "ema."


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder with a checkpoint in pieces."""
    return (path / META_NAME).is_file() and (path / INDEX_NAME).is_file()


def read_meta(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint but its tensors, which are None here.

    Raises:
        ValueError: if it cannot be read without unpickling.
    """
    meta = load_plain(path / META_NAME)
    if not isinstance(meta, dict):
        raise ValueError(f"{path / META_NAME} is not the {META_NAME} of a checkpoint")
    return meta


def load_into(state: dict[str, Any], path: Path) -> None:
    """Fill the tensors of `state`, whole ones or DTensors of any mesh, from the checkpoint in `path`.

    Raises:
        ValueError: if something is missing or of another shape.
    """
    with warnings.catch_warnings(action="ignore"):  # that there is only one process
        try:
            dcp.load(state, storage_reader=SafeReader(path), planner=SafePlanner())
        except (Exception, dcp.api.CheckpointException) as error:  # the latter is not an Exception
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ValueError(f"the checkpoint {path} does not fit the model: {reason[:400]}") from error


def stored_tensors(path: Path, prefix: str) -> dict[str, TensorStorageMetadata]:
    """Names of the tensors of a checkpoint that begin with `prefix`, which is removed, with shape and type."""
    entries = SafeReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): entry
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, which is removed, on the CPU, read by one process.

    Raises:
        ValueError: if the checkpoint is damaged.
    """
    entries = stored_tensors(path, prefix)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    if tensors:
        load_into({prefix + name: tensor for name, tensor in tensors.items()}, path)
    return tensors


class SafeReader(dcp.FileSystemReader):
    """torch's reader, with an index that can only describe tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint.

        Raises:
            ValueError: if it holds anything else.
        """
        return read_index(Path(self.path) / INDEX_NAME)

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        piece = super()._slice_file(file, sinfo)
        check_archive_bytes(piece, f"{self.path}: {sinfo.relative_path}")
        return piece


class SafePlanner(DefaultLoadPlanner):
    """torch's planner, which reads values that are not tensors without unpickling."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take over one value that is not a tensor."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)  # raises where it is not plain
        plain.seek(0)
        super().load_bytes(read_item, plain)
