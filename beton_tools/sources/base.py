"""What the writer needs to know about a set of labelled images, wherever they lie."""

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

# what torchvision's and timm's folder loaders take for images, and two more that people have and `images` decodes
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif"),  # of an animation the first frame
)


def stamps_of(paths: Iterable[str]) -> np.ndarray:
    """Size and time of change (ns) of every file, int64 (F, 2); zeros for one that cannot be looked at."""
    stamps = array("q")
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path for each of a million takes as long as the look
        except OSError:  # reading it will say why
            stamps.extend((0, 0))
        else:
            stamps.extend((status.st_size, status.st_mtime_ns))
    return np.array(stamps, np.int64).reshape(-1, 2)


class Location(Protocol):
    """Where one image's bytes are: small and picklable, sent to the worker that reads them."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class Source(ABC):
    """N labelled images, in a fixed order. `classes` is sorted by wnid or folder name; labels index it."""

    kind: str
    root: Path
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None  # for people; None where unknown
    labels: np.ndarray  # int64 (N,)
    names: Names  # for people and for extract: relative path, archive member or row
    # suffix -> number of files in class folders that are taken for no images
    left_out: dict[str, int] = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def locate(self, i: int) -> Location: ...

    @abstractmethod
    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        """A row (int64) for each of these images, that differs once its content does: sizes, times of change, places."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A whole file, or `length` bytes of one (a member of a tar)."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        # a named pipe without a writer would hold up a blocking open for ever
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
    """Images that are files of their own: name = path below root."""

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
