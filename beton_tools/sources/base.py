"""The interface between the writer and a set of labelled images, whatever their storage."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from beton_tools.names import Names


def stamps_of(paths: Iterable[str]) -> np.ndarray:
    """Size and modification time (ns) of every file, int64 (F, 2); zeros for a file that cannot be examined."""
    stamps = array("q")
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - creating a Path takes as long as the call itself
        except OSError:  # reading the file will report the reason
            stamps.extend((0, 0))
        else:
            stamps.extend((status.st_size, status.st_mtime_ns))
    return np.array(stamps, np.int64).reshape(-1, 2)


class Location(Protocol):
    """Where the bytes of one image are stored. Small and picklable: it is sent to the worker that reads them."""

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises:
            OSError: they cannot be read; the message is the reason.
        """
        ...


@dataclass(frozen=True)
class Source(ABC):
    """N labelled images in a fixed order.

    classes: sorted by wnid or folder name; labels are indices into it.
    class_names: readable names of the classes, None where unknown.
    labels: int64 (N,).
    names: path below `root`, archive member or row of each image, for messages and for `beton extract`.
    left_out: suffix -> number of files in class folders that are not images.
    """

    kind: str
    root: Path
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None
    labels: np.ndarray
    names: Names
    left_out: dict[str, int] = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def locate(self, i: int) -> Location:
        """Where image `i` is stored."""

    @abstractmethod
    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        """One int64 row per image in `chosen` that changes with its content: file size, modification time, offset."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A whole file (length -1), or `length` bytes of one (a member of a tar)."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        # without O_NONBLOCK, opening a named pipe that has no writer would block forever
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            file.seek(self.offset)
            data = file.read() if self.length < 0 else file.read(self.length)
        if self.length >= 0 and len(data) != self.length:
            raise OSError(f"{self.path} ends inside the image at byte {self.offset}")
        return data


@dataclass(frozen=True)
class FileSource(Source):
    """Images stored as separate files; the name of each is its path below `root`."""

    def locate(self, i: int) -> FileSpan:
        return FileSpan(f"{self.root}/{self.names[i]}")

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        return stamps_of(f"{self.root}/{self.names[i]}" for i in chosen.tolist())


@dataclass(frozen=True)
class SpanSource(Source):
    """Images inside archives: image i is `lengths[i]` bytes at `offsets[i]` of `archives[archive_ids[i]]`."""

    archives: Sequence[str]
    archive_ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def locate(self, i: int) -> FileSpan:
        return FileSpan(self.archives[self.archive_ids[i]], int(self.offsets[i]), int(self.lengths[i]))

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        archives = stamps_of(self.archives)[self.archive_ids[chosen]]
        return np.column_stack([archives, self.offsets[chosen], self.lengths[chosen]])
