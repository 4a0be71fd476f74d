"""Names of files by the million in little memory, and what is known about each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

_HALF = 2**64 - 1  # of a file's identity: the device above, the inode below


class Names:
    """A sequence of names as bytes, all in one string: objects would be copied into every worker page by page.

    Attributes:
        text: all names, one after the other.
        bounds: int64 (N + 1,), where each begins and the last ends.
    """

    def __init__(self, text: bytes, bounds: np.ndarray, chosen: np.ndarray | None = None) -> None:
        """
        Args:
            text: as the attribute.
            bounds: as the attribute.
            chosen: which of the names are in the sequence, by position; None: all.
        """
        self.text, self.bounds, self._chosen = text, bounds, chosen

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The sequence of `names`, encoded as the file system's are."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(b"".join(encoded), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.bounds) - 1 if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: int) -> bytes:
        place = range(len(self))[index]
        place = place if self._chosen is None else int(self._chosen[place])
        return self.text[self.bounds[place] : self.bounds[place + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def take(self, positions: np.ndarray) -> Names:
        """The names at `positions`; the text is shared."""
        return Names(self.text, self.bounds, positions if self._chosen is None else self._chosen[positions])

    def strings(self) -> list[str]:
        """The names as Python's `str`."""
        return [os.fsdecode(name) for name in self]


@dataclass(frozen=True)
class Listing:
    """The files below a folder, sorted by name, or some of them; everything but `folders` has an entry for each.

    Attributes:
        names: relative to the folder, with "/".
        holders: int32, the index in `folders` of the folder that each file is in.
        places: float64, `name_to_unit` of each name.
        devices: uint64, with `inodes` the identity of each file.
        inodes: uint64.
        folders: relative names, each with "/" at the end; "" is the folder itself.
    """

    names: Names
    holders: np.ndarray
    places: np.ndarray
    devices: np.ndarray
    inodes: np.ndarray
    folders: list[str]

    @classmethod
    def of(cls, files: Mapping[str, int]) -> Listing:
        """The listing of `files`: names, each with its device above 64 bits of its inode."""
        names = sorted(files)
        numbers: dict[str, int] = {}
        holders = [numbers.setdefault(name[: name.rfind("/") + 1], len(numbers)) for name in names]
        return cls(
            Names.of(names),
            np.array(holders, np.int32),
            np.fromiter(map(name_to_unit, names), np.float64, len(names)),
            np.fromiter((files[name] >> 64 & _HALF for name in names), np.uint64, len(names)),
            np.fromiter((files[name] & _HALF for name in names), np.uint64, len(names)),
            list(numbers),
        )

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: np.ndarray) -> Listing:
        """The files at `positions`, ascending."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name)[positions] for f in fields(self)[1:-1]}
        return replace(self, names=self.names.take(positions), **columns)

    def without(self, others: Iterable[Listing]) -> Listing:
        """The files that are in none of `others`: by the file itself, because names can be spelled in many ways."""
        taken: set[tuple[int, int]] = set()
        maybe = np.zeros(len(self), bool)
        for other in others:
            shared = np.intersect1d(self.inodes, other.inodes)  # few: so that no million pairs are made in Python
            maybe |= np.isin(self.inodes, shared)
            taken.update(other._identities(np.flatnonzero(np.isin(other.inodes, shared))))
        positions = np.flatnonzero(maybe)
        found = [pair in taken for pair in self._identities(positions)]
        keep = np.ones(len(self), bool)
        keep[positions[np.array(found, bool)]] = False
        return self if keep.all() else self.take(np.flatnonzero(keep))

    def as_dict(self) -> dict[str, int]:
        """The files as `of` takes them."""
        identities = self._identities(np.arange(len(self)))
        pairs = zip(self.names.strings(), identities, strict=True)
        return {name: device << 64 | inode for name, (device, inode) in pairs}

    def used_folders(self) -> list[str]:
        """Those of `folders` that hold a file of the listing."""
        return [self.folders[number] for number in np.unique(self.holders)]

    def _identities(self, positions: np.ndarray) -> list[tuple[int, int]]:
        return list(zip(self.devices[positions].tolist(), self.inodes[positions].tolist(), strict=True))


def name_to_unit(name: str) -> float:
    """A number in [0, 1) that depends only on `name`; the fractions of the splits are ranges of it."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48
