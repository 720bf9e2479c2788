"""The interface between the writer and a set of labelled images, however they are stored."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import IO, Protocol, TypeVar

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.names import MAX_NAME_BYTES, Names, composed
from beton_tools.base.user_files import open_regular
from beton_tools.read.class_list import Classes
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources.remote import BLOCK, RemotePath, SourcePath, Stamp, map_files, read_range

T = TypeVar("T")
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")
MODIFIED = 1  # column of `Source.stamps` with the modification time or version


def stamp_of(file: IO[bytes]) -> Stamp:
    """Return an open file's size and its modification time or version. They differ once the content differs."""
    if hasattr(file, "stamp"):
        return file.stamp
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def stamps_of(paths: Iterable[str]) -> np.ndarray:
    """Return every file's size and modification time (ns), int64 (F, 2).

    A file that cannot be examined has zeros.
    """
    stamps = array("q")
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - creating a Path takes as long as the call itself
        except (OSError, ValueError):  # reading the file will report the reason
            stamps.extend((0, 0))
        else:
            stamps.extend((status.st_size, status.st_mtime_ns))
    return np.array(stamps, np.int64).reshape(-1, 2)


class Location(Protocol):
    """The place where one image's bytes are stored.

    It is small and picklable, because it is sent to the worker that reads it.

    Neighbouring locations with the same `group` are read together, and go to the same worker.
    """

    def read(self) -> bytes:
        """Return the image file's bytes.

        Raises OSError, with the reason as its message, if they cannot be read.
        """
        ...


@dataclass(frozen=True)
class Source(ABC):
    """N labelled images in a fixed order.

    Attributes:
        classes: Classes, sorted by wnid or folder name. Labels are indices into it.
        class_names: Readable class names, or None where unknown.
        labels: int64 (N,), or uint8 (N, K) for multi-label images, with 1 for each class that the image has.
        names: Each image's path below `root`, archive member or row, for messages and for `beton extract`.
        left_out: suffix -> how many non-image files class folders or tars have, or links in tars (".jpg link").
        reading: A sentence, if a table's label cells such as "cat;dog" were read as several labels.
        columns: How each table column was read, as one line.
        listed_in: The table that lists the images by path.
        groups: Each image's group from a table's group column, "" for none. None without such a column.
        contents: Each image's content id, uint64 (N,), if it is known without reading the images.
        notes: Sentences about how labels were matched with given classes.

    Raises:
        UserError: There are more classes, or a longer name, than the file format and the loader accept.
    """

    kind: str
    root: SourcePath
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None
    labels: np.ndarray
    names: Names
    left_out: dict[str, int] = field(default_factory=dict, kw_only=True)
    reading: str = field(default="", kw_only=True)
    columns: str = field(default="", kw_only=True)
    listed_in: str = field(default="", kw_only=True)
    groups: Names | None = field(default=None, kw_only=True)
    contents: np.ndarray | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if len(self.classes) > MAX_CLASSES:
            raise UserError(f"{self.title}: {len(self.classes):,} classes. Give at most {MAX_CLASSES:,}")
        lengths = np.diff(self.names.offsets)
        if lengths.max(initial=0) > MAX_NAME_BYTES:
            name = self.names[int(lengths.argmax())]
            raise UserError(
                f"{self.title}: an image's name has {lengths.max():,} bytes ({name[:40]}...). "
                f"Rename it to at most {MAX_NAME_BYTES:,} bytes"
            )

    @property
    def title(self) -> str:
        """The table or folder that a message names."""
        return self.listed_in or str(self.root)

    @abstractmethod
    def locate(self, i: int) -> Location:
        """Return where image `i` is stored."""

    @abstractmethod
    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        """Return one int64 row per image in `chosen`, which changes with the image's content.

        A row has file size, modification time and offset.
        """


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A whole local file (length -1), or `length` bytes in a local or remote archive.

    Attributes:
        stamp: The archive's stamp when it was indexed, or None for a file that was not opened before.
    """

    path: str | RemotePath
    offset: int = 0
    length: int = -1
    stamp: Stamp | None = None

    @property
    def group(self) -> tuple[RemotePath, int] | None:
        """The same for all spans in one BLOCK of a remote archive, which are read in one request."""
        return (self.path, self.offset // BLOCK) if isinstance(self.path, RemotePath) else None

    def read(self) -> bytes:
        if isinstance(self.path, RemotePath) and self.stamp is not None:
            return read_range(self.path, self.stamp, self.offset, self.offset + self.length)
        with open_regular(str(self.path)) as file:
            stamp = stamp_of(file)
            if self.stamp is not None and stamp != self.stamp:
                raise OSError(f"{self.path} changed after it was indexed")
            file.seek(self.offset)
            data = file.read(self.length)
            expected = self.length if self.length >= 0 else stamp[0]
            if len(data) != expected or stamp_of(file) != stamp:
                raise OSError(f"{self.path} changed while it was being read")
        return data


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image in a remote file, whose bytes were read or could not be read."""

    result: bytes | OSError | UserError

    def read(self) -> bytes:
        if isinstance(self.result, bytes):
            return self.result
        raise self.result


def fetch_remote(locations: Sequence[Location]) -> list[Location]:
    """Read the images that lie in remote files. Other locations stay as they are.

    Groups of spans are requested at the same time. Each request includes what lies between the group's spans.
    """
    groups: dict[tuple[RemotePath, int], list[FileSpan]] = {}
    fetched: dict[Location, Location] = {}
    for place in locations:
        if isinstance(place, FileSpan) and place.group is not None:
            groups.setdefault(place.group, []).append(place)
        elif isinstance(getattr(place, "path", None), RemotePath):
            fetched[place] = Fetched(_try_to_read(place))
    whole = []
    for spans in groups.values():
        start, end = min(s.offset for s in spans), max(s.offset + s.length for s in spans)
        whole.append(replace(spans[0], offset=start, length=end - start))
    for request, result, spans in zip(whole, map_files(_try_to_read, whole), groups.values(), strict=True):
        for s in spans:
            part = result[s.offset - request.offset :][: s.length] if isinstance(result, bytes) else result
            fetched[s] = Fetched(part)
    return [fetched.get(place, place) for place in locations]


def _try_to_read(place: Location) -> bytes | OSError | UserError:
    try:
        return place.read()
    except (OSError, UserError) as error:
        return error


@dataclass(frozen=True)
class FileSource(Source):
    """Images stored as separate files. An image's name is its path below `root`."""

    def locate(self, i: int) -> FileSpan:
        return FileSpan(f"{self.root}/{self.names[i]}")

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        return stamps_of(f"{self.root}/{self.names[i]}" for i in chosen.tolist())


@dataclass(frozen=True)
class SpanSource(Source):
    """Images inside archives: image i is `lengths[i]` bytes at `offsets[i]` in `archives[archive_ids[i]]`.

    Attributes:
        archive_stamps: Each archive's stamp when it was indexed.
    """

    archives: Sequence[str | RemotePath]
    archive_stamps: Sequence[Stamp]
    archive_ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def locate(self, i: int) -> FileSpan:
        archive = self.archive_ids[i]
        return FileSpan(
            self.archives[archive], int(self.offsets[i]), int(self.lengths[i]), self.archive_stamps[archive]
        )

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        archives = np.array(self.archive_stamps, np.int64)[self.archive_ids[chosen]]
        return np.column_stack([archives, self.offsets[chosen], self.lengths[chosen]])


@dataclass(frozen=True)
class SubsetSource(Source):
    """Some images from `base`: image i is image `indices[i]` in `base`."""

    base: Source
    indices: np.ndarray

    def locate(self, i: int) -> Location:
        return self.base.locate(int(self.indices[i]))

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        return self.base.stamps(self.indices[chosen])


def subset(base: Source, indices: np.ndarray, classes: Sequence[str]) -> SubsetSource:
    """Select the images at `indices` from `base`, in that order.

    Labels are the positions of their classes in `classes`.

    Args:
        indices: int64.
        classes: Must contain every chosen image's classes.
    """
    position = {name: label for label, name in enumerate(classes)}
    if base.labels.ndim == 1:
        labels = np.array([position.get(name, -1) for name in base.classes], np.int64)[base.labels[indices]]
    else:  # the last column stands for classes without images
        own = {name: label for label, name in enumerate(base.classes)}
        labels = np.pad(base.labels[indices], ((0, 0), (0, 1)))[:, [own.get(name, -1) for name in classes]]
    readable = dict(zip(base.classes, base.class_names or (), strict=False))
    return SubsetSource(
        base.kind,
        base.root,
        tuple(classes),
        tuple(readable.get(name, name) for name in classes) if readable else None,
        labels,
        Names.of(base.names[i] for i in indices.tolist()),
        left_out=base.left_out,
        reading=base.reading,
        columns=base.columns,
        listed_in=base.listed_in,
        groups=None if base.groups is None else Names.of(base.groups[i] for i in indices.tolist()),
        contents=None if base.contents is None else base.contents[indices],
        notes=base.notes,
        base=base,
        indices=indices,
    )


def no_labels(folder: object, instead: str) -> UserError:
    """Return the error for images that are not labelled by class folders. `instead` says how else to label them."""
    return UserError(f"{folder}: the images have no labels. Put them into one folder per class, or {instead}")


class KnownClasses(tuple[str, ...]):
    """The ids of given classes, such as the training file's, and how a source's labels may be matched with them.

    Attributes:
        by_name: Readable name -> id, for names that only one class has.
        by_position: Whether the source's own numbers are labels, whatever the classes are called (the user's choice).
        notes: Sentences about labels that were taken as numbers.
    """

    by_name: dict[str, str]
    by_position: bool
    notes: list[str]

    @classmethod
    def of(cls, classes: Classes, by_position: bool = False) -> KnownClasses:
        ids = classes.names if classes.ids is None else classes.ids
        known = cls(map(composed, ids))
        counts = Counter(map(composed, classes.names))
        pairs, taken = zip(map(composed, classes.names), known, strict=True), set(known)
        known.by_name = {name: own for name, own in pairs if counts[name] == 1 and name not in taken}
        known.by_position, known.notes = by_position, []
        return known


def labels_of(classes: Sequence[str]) -> dict[str, int]:
    """Map class names to labels: by id, and for `KnownClasses` also by the readable names."""
    label_of = {name: label for label, name in enumerate(classes)}
    if isinstance(classes, KnownClasses):
        label_of |= {name: label_of[own] for name, own in classes.by_name.items()}
    return label_of


def check_labels(root: SourcePath | str, highest: int, classes: Sequence[str] | None) -> Sequence[str]:
    """Return the classes for labels 0 to `highest`: `classes` if given, otherwise the numbers themselves."""
    classes = classes or tuple(map(str, range(highest + 1)))
    if highest >= len(classes):
        raise UserError(
            f"{root}: label {highest}, but there are only {len(classes)} classes. Correct the label or the class list"
        )
    return classes


def check_classes(
    root: SourcePath | str, used: Iterable[str], classes: Sequence[str] | None, advice: str
) -> Sequence[str]:
    """Return the class list for the classes in `used`, in order: `classes` if given, otherwise the used classes.

    Raises:
        UserError: A used class is not in `classes`. The message ends with `advice`.
    """
    used = tuple(used)
    if classes is None:
        return used
    names = classes if isinstance(classes, KnownClasses) else tuple(map(composed, classes))
    unknown = next(iter(sorted(set(used) - labels_of(names).keys())), None)
    if unknown is not None:
        raise UserError(f"{root}: class {unknown!r} is not one of the {len(names)} training classes. {advice}")
    return names


def note_numbers(root: SourcePath | str, classes: Sequence[str]) -> None:
    """Note that labels without names were taken as the given classes' numbers."""
    if isinstance(classes, KnownClasses) and Classes(tuple(classes)).is_named:
        classes.notes.append(f"{root}: the labels are numbers without names, taken as the given classes' numbers")


def are_positions(labels: Collection[str], classes: Sequence[str]) -> bool:
    """Return True if labels are the classes' positions.

    This is so if all labels are numbers, no label is one of the classes, and not all classes are numbers too.
    """
    return all(map(is_number, labels)) and set(labels).isdisjoint(classes) and not all(map(is_number, classes))


def is_number(text: str) -> bool:
    """Return True if a class is given as a number with at most 18 digits, which fit an int64."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def sort_labels(labels: Collection[str]) -> list[str]:
    """Sort class names alphabetically. Numbers are sorted by value and come before other names.

    They may have decimals, because pandas writes whole numbers as 10.0 if a cell was missing once.
    """
    value = {text: Decimal(text) for text in labels if _NUMBER.fullmatch(text)}
    return sorted(labels, key=lambda text: (text not in value, value.get(text, 0), text))
