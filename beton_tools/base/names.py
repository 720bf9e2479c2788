"""Millions of file names in one memory block."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

MAX_NAME_BYTES = 4096  # longest name (PATH_MAX on Linux)


def escape_undecodable(name: str) -> str:
    """Replace each byte XX that is not UTF-8 by `\\udcXX`, so that the result is valid text."""
    return name.encode("utf-8", "backslashreplace").decode()


def composed(name: str) -> str:
    """Return a class name in Unicode's form C.

    macOS and Linux write the same accented name with different characters.
    """
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, eq=False)
class Names:
    """Immutable list of strings in one UTF-8 blob. `offsets` is int64 (N + 1,). Undecodable bytes are preserved."""

    blob: bytes
    offsets: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(b"".join(encoded), offsets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and list(self) == list(other)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        return self.blob[self.offsets[i] : self.offsets[i + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
