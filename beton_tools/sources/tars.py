"""Images inside uncompressed tar archives, located by reading the headers; archives are not unpacked."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from beton_tools.errors import UserError
from beton_tools.image_formats import is_image_name
from beton_tools.names import Names
from beton_tools.sources.base import SpanSource
from beton_tools.sources.wnids import class_names_of, is_wnid

_BLOCK = 512  # POSIX ustar


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar: `size` bytes at `offset` of the file that was opened."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """Regular files of the tar that starts at the file's current position.

    Offsets are relative to the start of `file`, so a tar inside a tar does not have to be unpacked.

    Raises:
        UserError: not an uncompressed tar, or a damaged one.
    """
    end = file.seek(0, 2) if (start := file.tell()) == 0 else Path(path).stat().st_size
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing a TarFile does not close its fileobj
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
            if info.isreg() and not info.issparse():
                if info.offset_data + info.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                after = file.tell()
                yield Member(info.name, info.offset_data, info.size)
                file.seek(after)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{path}: not a complete uncompressed tar archive ({error}); download it again"
        ) from error
    file.seek(tar.offset)
    if any(file.read(_BLOCK)):  # tarfile treats a broken header as the end of the archive
        raise UserError(
            f"{path}: damaged archive, no valid tar header at byte {tar.offset}; download it again"
        )


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The content of a member of the tar that was opened as `file`."""
    file.seek(member.offset)
    return file.read(member.size)


@dataclass
class SpanTable:
    """The images found in archives so far: 28 bytes and a name per image."""

    archives: list[str]
    names: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("q"))
    archive_ids: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))

    def add(self, name: str, label: int, archive_id: int, member: Member) -> None:
        self.names.append(name)
        self.labels.append(label)
        self.archive_ids.append(archive_id)
        self.offsets.append(member.offset)
        self.lengths.append(member.size)

    def source(
        self,
        kind: str,
        root: Path,
        classes: Sequence[str],
        class_names: tuple[str, ...] | None,
        key: Callable[[int], str] | None,
    ) -> SpanSource:
        """The table as a Source.

        Args:
            key: sort key of an image, given its index in this table; None keeps the order of the archives.

        Raises:
            UserError: the table is empty.
        """
        if not self.names:
            raise UserError(f"{root}: contains no images; give an archive of images")
        order = (
            np.arange(len(self.names)) if key is None else np.array(sorted(range(len(self.names)), key=key))
        )
        return SpanSource(
            kind,
            root,
            tuple(classes),
            class_names,
            np.array(self.labels, np.int64)[order],
            Names.of(self.names[i] for i in order.tolist()),
            tuple(self.archives),
            np.array(self.archive_ids, np.int32)[order],
            np.array(self.offsets, np.int64)[order],
            np.array(self.lengths, np.int64)[order],
        )


def train_tar_source(path: Path, classes: Sequence[str] | None = None) -> SpanSource:
    """ILSVRC2012_img_train.tar, a tar of one tar per wnid: the same images, in the same order, as its unpacked folder.

    Raises:
        UserError: a damaged archive, members that are not tars of wnids, or a wnid that is not in `classes`.
    """
    with path.open("rb") as file:
        inner = {Path(m.name).stem: m for m in members(file, path) if m.name.endswith(".tar")}
        wnids = _checked_wnids(path, inner, classes)
        table = SpanTable([str(path)])
        for wnid in sorted(inner):
            file.seek(inner[wnid].offset)
            _add_class(table, file, path, wnid, wnids.index(wnid), 0)
    return _by_class_and_name(table, path, wnids)


def class_tars_source(folder: Path, tars: Sequence[Path], classes: Sequence[str] | None = None) -> SpanSource:
    """The members of the train tar as separate files: n01440764.tar, n01443537.tar, ...

    Raises:
        UserError: a damaged archive, or a wnid that is not in `classes`.
    """
    by_wnid = {path.stem: path for path in tars}
    wnids = _checked_wnids(folder, by_wnid, classes)
    table = SpanTable([str(by_wnid[w]) for w in sorted(by_wnid)])
    for archive_id, wnid in enumerate(sorted(by_wnid)):
        with by_wnid[wnid].open("rb") as file:
            _add_class(table, file, by_wnid[wnid], wnid, wnids.index(wnid), archive_id)
    return _by_class_and_name(table, folder, wnids)


def _checked_wnids(root: Path, found: Collection[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The class list of the archives `found`: `classes` if given, otherwise their wnids in sorted order."""
    others = [name for name in found if not is_wnid(name)]
    if others or not found:
        first = f"{others[0]}.tar" if others else "none"
        raise UserError(
            f"{root}: expected one tar per wnid (such as n01440764.tar), found {first}; remove it"
        )
    wnids = tuple(sorted(found)) if classes is None else tuple(classes)
    unknown = sorted(set(found) - set(wnids))
    if unknown:
        raise UserError(
            f"{root}: class {unknown[0]!r} is not one of the {len(wnids)} training classes; remove it"
        )
    return wnids


def _add_class(table: SpanTable, file: BinaryIO, path: Path, wnid: str, label: int, archive_id: int) -> None:
    for member in members(file, path):
        name = Path(member.name).name
        if is_image_name(name):
            table.add(f"{wnid}/{name}", label, archive_id, member)


def _by_class_and_name(table: SpanTable, root: Path, wnids: tuple[str, ...]) -> SpanSource:
    return table.source(
        "ilsvrc-tar", root, wnids, class_names_of(wnids, root.parent), table.names.__getitem__
    )
