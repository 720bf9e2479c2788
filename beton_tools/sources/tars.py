"""Images inside uncompressed tar archives: ImageNet's and WebDataset shards.

Only headers are read, nothing is unpacked.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import IMAGE_SUFFIXES, is_image_name
from beton_tools.base.names import Names
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources.base import SpanSource, check_classes, check_labels, stamp_of
from beton_tools.sources.path_table import number_by_name
from beton_tools.sources.remote import RemotePath, SourcePath, Stamp, map_files, open_source_file
from beton_tools.sources.side_files import class_names_of, is_wnid, read_class_list

_BLOCK = 512  # POSIX ustar
_MAX_HEADER = 64 << 10  # bytes per extended header (long names, pax records). A path has at most 4096
_CLASS_LISTS = ("classes.txt", "classnames.txt", "synsets.txt")  # one class per line, in the shards' folder
_MAX_JSON_BYTES = 1 << 20
_MAX_NUMBER_BYTES = 32  # in a .cls file, with white space
# Limits per archive, because a hostile server may send headers without end. ImageNet as one archive, with a label file
# per image, has 2.6 million members, 100 MB for names, and 50 kB per member.
MAX_MEMBERS = 3_000_000
MAX_NAMES = 256 << 20  # bytes
FIRST_MEMBERS, LEAST_MEAN = 50_000, 64  # after this many members, the minimum mean bytes per member
# Before Python 3.11.10, tarfile's time for a pax header is quadratic in its longest run of digits (CVE-2024-6232).
# A file name has at most 255 characters, and a number in a header has fewer.
_TOO_MANY_DIGITS = re.compile(rb"[0-9]{256}")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar: `size` bytes at `offset` in the file that was opened."""

    name: str
    offset: int
    size: int


class _HeaderReader:
    """The file as `tarfile` sees it.

    A header can make `tarfile` read or seek any distance, which this class refuses.
    """

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        header = self._file.read(size)
        if size > _BLOCK and _TOO_MANY_DIGITS.search(header):
            raise tarfile.ReadError("a number with more than 255 digits in a header")
        return header

    def seek(self, offset: int) -> int:
        if not 0 <= offset <= self._end:
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(offset)


def members(
    file: BinaryIO, path: SourcePath, end: int | None = None, left_out: Counter[str] | None = None
) -> Iterator[Member]:
    """Yield the regular files in the tar that starts at the file's current position.

    A hard link is yielded as the file that it refers to. Offsets are relative to the start of `file`, so a tar inside a
    tar does not have to be unpacked.

    Args:
        end: Offset at which the tar ends. None stands for the file's end.
        left_out: Counts members without their own data, such as symbolic links, by suffix and kind.

    Raises:
        UserError: The file is not an uncompressed tar, or is damaged.
    """
    start = file.tell()
    end = file.seek(0, os.SEEK_END) if end is None else end
    file.seek(start)
    earlier: dict[str, Member] = {}
    try:
        # closing a TarFile does not close its fileobj
        tar = tarfile.open(fileobj=cast(BinaryIO, _HeaderReader(file, end)), mode="r:")  # noqa: SIM115
        position, count, names, total = start, 0, 0, 0
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
            if info.size < 0 or tar.offset <= position:  # the same headers could be read forever
                raise tarfile.ReadError("a member with a negative size")
            position, count, names, total = tar.offset, count + 1, names + len(info.name), total + info.size
            if count > FIRST_MEMBERS and total < LEAST_MEAN * count:
                raise UserError(f"{path}: {count:,} members have {total:,} bytes together. Give an archive with images")
            if count > MAX_MEMBERS or names > MAX_NAMES:
                raise UserError(
                    f"{path}: more than {MAX_MEMBERS:,} members, or {MAX_NAMES >> 20} MiB of names. Divide it into several "
                    "archives"
                )
            if info.isreg() and not 0 <= info.size <= end - info.offset_data:
                raise tarfile.ReadError("unexpected end of data")
            member = _as_member(info, earlier)
            if member is not None:
                if member.size:
                    earlier[member.name] = member
                after = file.tell()
                yield member
                file.seek(after)
            elif left_out is not None and not info.isdir():
                kind = "link" if info.issym() or info.islnk() else "special file"
                left_out[f"{_suffix(info.name)} {kind}".lstrip()] += 1
    except (OSError, UserError):
        raise
    except Exception as error:  # tarfile raises many types for hostile headers, among them RecursionError
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not a complete uncompressed tar archive ({reason}). Download it again") from error
    file.seek(tar.offset)
    if any(file.read(_BLOCK)):  # tarfile treats a broken header as the end of the archive
        raise UserError(f"{path}: damaged archive, no valid tar header at byte {tar.offset}. Download it again")


def _as_member(info: tarfile.TarInfo, earlier: Mapping[str, Member]) -> Member | None:
    """Return the member's data, or an earlier member's if it is a hard link. None if there is no data."""
    if info.islnk():  # tar stores a file with several hard links once
        target = earlier.get(info.linkname)
        return None if target is None else replace(target, name=info.name)
    if info.isreg() and not info.issparse():
        return Member(info.name, info.offset_data, info.size)
    return None


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def read_member(file: BinaryIO, path: SourcePath, member: Member) -> bytes:
    """Read a member from the tar that was opened as `file`. Raises UserError if the file became shorter."""
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise UserError(f"{path}: changed while it was being read. Run the same command again")
    return data


@dataclass
class SpanTable:
    """The images found in archives so far, with 28 bytes and a name per image."""

    archives: list[str | RemotePath] = field(default_factory=list)
    archive_stamps: list[Stamp] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("q"))
    archive_ids: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    left_out: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def open_archive(self, path: SourcePath) -> Iterator[BinaryIO]:
        """Open an archive, to which the images that are added next belong."""
        with open_source_file(path, "a .tar file") as file:
            self.add_archive(path, stamp_of(file))
            yield file

    def add_archive(self, path: SourcePath, stamp: Stamp) -> None:
        """Add an archive that had this stamp when it was read. The images that are added next belong to it."""
        self.archives.append(path if isinstance(path, RemotePath) else str(path))
        self.archive_stamps.append(stamp)

    def add(self, name: str, label: int, member: Member) -> None:
        self.names.append(name)
        self.labels.append(label)
        self.archive_ids.append(len(self.archives) - 1)
        self.offsets.append(member.offset)
        self.lengths.append(member.size)

    def source(
        self,
        kind: str,
        root: SourcePath,
        classes: Sequence[str],
        class_names: tuple[str, ...] | None,
        key: Callable[[int], str] | None,
    ) -> SpanSource:
        """Return the table as a Source.

        Args:
            key: Sort key for an image, given its index in this table. None keeps the archives' order.
        """
        if not self.names:
            raise UserError(f"{root}: contains no images. Give an archive with images")
        order = np.arange(len(self.names)) if key is None else np.array(sorted(range(len(self.names)), key=key))
        return SpanSource(
            kind,
            root,
            tuple(classes),
            class_names,
            np.array(self.labels, np.int64)[order],
            Names.of(self.names[i] for i in order.tolist()),
            tuple(self.archives),
            tuple(self.archive_stamps),
            np.array(self.archive_ids, np.int32)[order],
            np.array(self.offsets, np.int64)[order],
            np.array(self.lengths, np.int64)[order],
            left_out=dict(self.left_out),
        )


def train_tar_source(path: SourcePath, classes: Sequence[str] | None = None) -> SpanSource:
    """Open ILSVRC2012_img_train.tar, which contains one tar per wnid.

    The images and their order are the same as in its unpacked folder.
    """
    table = SpanTable()
    with table.open_archive(path) as file:
        inner = {PurePath(m.name).stem: m for m in members(file, path) if m.name.endswith(".tar")}
        wnids = _checked_wnids(path, inner, classes)
        for wnid in sorted(inner):
            file.seek(inner[wnid].offset)
            end = inner[wnid].offset + inner[wnid].size
            _add_class(table, wnid, wnids.index(wnid), members(file, path, end, table.left_out))
    return _by_class_and_name(table, path, wnids)


def class_tars_source(
    folder: SourcePath, tars: Sequence[SourcePath], classes: Sequence[str] | None = None
) -> SpanSource:
    """Open the train tar's members as separate files: n01440764.tar, n01443537.tar, ..."""
    by_wnid = {path.stem: path for path in tars}
    wnids = _checked_wnids(folder, by_wnid, classes)
    table = SpanTable()
    for wnid in sorted(by_wnid):
        with table.open_archive(by_wnid[wnid]) as file:
            _add_class(table, wnid, wnids.index(wnid), members(file, by_wnid[wnid], left_out=table.left_out))
    return _by_class_and_name(table, folder, wnids)


def _checked_wnids(root: SourcePath, names: Collection[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class list for the archives `names`: `classes` if given, otherwise their wnids in sorted order."""
    others = [name for name in names if not is_wnid(name)]
    if others or not names:
        first = f"{others[0]}.tar" if others else "none"
        raise UserError(f"{root}: expected one tar per wnid (such as n01440764.tar), found {first}. Remove it")
    return tuple(check_classes(root, sorted(names), classes, "Remove it"))


def _add_class(table: SpanTable, wnid: str, label: int, archive: Iterator[Member]) -> None:
    for member in archive:
        name = PurePath(member.name).name
        if is_image_name(name):
            table.add(f"{wnid}/{name}", label, member)
        else:
            table.left_out[_suffix(name)] += 1


def _by_class_and_name(table: SpanTable, root: SourcePath, wnids: tuple[str, ...]) -> SpanSource:
    return table.source("ilsvrc-tar", root, wnids, class_names_of(wnids, root.parent), table.names.__getitem__)


# WebDataset: a sample's files have the same name up to the first dot ----------------------------------------------------


def webdataset_source(
    root: SourcePath, shards: Sequence[SourcePath], classes: Sequence[str] | None = None
) -> SpanSource:
    """Open samples shard by shard. The label is a number in `.cls`, or "label" in `.json`.

    Args:
        classes: Each label's name. None uses a class list from the shards' folder, or else the numbers themselves.
    """
    table = SpanTable()
    for path, (stamp, samples, left_out) in zip(shards, map_files(_read_samples, shards), strict=True):
        table.add_archive(path, stamp)
        table.left_out.update(left_out)
        for key, image, label in samples:
            table.add(f"{path.name}/{key}.{_extension(image)}", label, image)
    own = next(filter(None, (read_class_list(root / name) for name in _CLASS_LISTS)), None)
    table.labels = array("q", number_by_name(root, np.array(table.labels), own, classes).tolist())
    class_list = check_labels(root, max(table.labels, default=-1), classes or own)
    return table.source("webdataset", root, class_list, class_names_of(class_list, root), key=None)


def _read_samples(path: SourcePath) -> tuple[Stamp, list[tuple[str, Member, int]], Counter[str]]:
    left_out: Counter[str] = Counter()
    with open_source_file(path, "a .tar file") as file:
        return stamp_of(file), list(_samples(file, path, left_out)), left_out


def _samples(file: BinaryIO, path: SourcePath, left_out: Counter[str]) -> Iterator[tuple[str, Member, int]]:
    """Yield the samples in one shard. `left_out` counts the files in samples without an image."""
    visible = (m for m in members(file, path, left_out=left_out) if not m.name.rpartition("/")[2].startswith("."))
    for key, group in groupby(visible, key=_sample_key):
        files = list(group)
        parts = {_extension(member): member for member in files}
        images = [extension for extension in parts if f".{extension}".endswith(IMAGE_SUFFIXES)]
        if images:
            if len(parts) < len(files):  # WebDataset refuses them too
                raise UserError(f"{path}: sample {key} has two files of the same kind. Give each sample its own name")
            image = next((e for e in images if f".{e}" in IMAGE_SUFFIXES), images[0])  # jpg before depth.png
            yield key, parts[image], _sample_label(file, path, key, parts)
        else:
            left_out.update(f".{extension}" if extension else "" for extension in parts)


def _sample_key(member: Member) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.split('.')[0]}" if folder else name.split(".")[0]


def _extension(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _sample_label(file: BinaryIO, path: SourcePath, key: str, parts: dict[str, Member]) -> int:
    member = parts.get("cls") or parts.get("json")
    if member is None:
        raise UserError(f"{path}: sample {key} has no label. Add a .cls or .json file to it")
    in_cls = "cls" in parts
    try:
        if member.size > (_MAX_NUMBER_BYTES if in_cls else _MAX_JSON_BYTES):
            raise ValueError(f"{member.size:,} bytes in its label file")
        content = read_member(file, path, member)
        label: Any = int(content) if in_cls else json.loads(content)["label"]
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise ValueError(f"{str(label)[:_MAX_NUMBER_BYTES]}, expected a number from 0 to {MAX_CLASSES - 1}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        text = f"no {error} in its .json" if isinstance(error, KeyError) else str(error)
        reason = text.partition("\n")[0][:200]
        raise UserError(f"{path}: sample {key} has no usable label ({reason}). Correct or remove the sample") from error
    return label
