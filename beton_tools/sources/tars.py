"""Images inside uncompressed tar archives, found by reading headers only; nothing is unpacked."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from beton_tools.errors import UserError
from beton_tools.names import Names
from beton_tools.sources.base import SpanSource
from beton_tools.sources.folder import is_image_name
from beton_tools.sources.wnids import class_names_of, is_wnid

_BLOCK = 512  # POSIX ustar


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar: `size` bytes at `offset` of the file that was opened."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """Members of the tar that starts at the file's position. Raises UserError where the archive is damaged.

    Offsets count from the start of the file, so a tar inside a tar needs no unpacking.
    """
    end = file.seek(0, 2) if (start := file.tell()) == 0 else Path(path).stat().st_size
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing it would not close the file
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all otherwise
            if info.isreg() and not info.issparse():
                if info.offset_data + info.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                after = file.tell()
                yield Member(info.name, info.offset_data, info.size)
                file.seek(after)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: not an uncompressed tar archive, or cut short ({error})") from error
    file.seek(tar.offset)
    if any(file.read(_BLOCK)):  # tarfile takes a broken header for the end
        raise UserError(
            f"{path}: damaged archive, no valid tar header at byte {tar.offset}; download it again"
        )


def read_member(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


@dataclass
class SpanTable:
    """Grows while archives are read: 28 bytes and a name per image."""

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
        """key: sorts the images (by index in this table); None keeps the archives' order."""
        if not self.names:
            raise UserError(f"{root}: no images inside; give an archive of images")
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
    """ILSVRC2012_img_train.tar: one tar per wnid inside. Same images in the same order as its unpacked
    folder."""
    with path.open("rb") as file:
        inner = {Path(m.name).stem: m for m in members(file, path) if m.name.endswith(".tar")}
        wnids = _class_list(path, inner, classes)
        table = SpanTable([str(path)])
        for wnid in sorted(inner):
            file.seek(inner[wnid].offset)
            _add_class(table, file, path, wnid, wnids.index(wnid), 0)
    return _by_class_and_name(table, path, wnids)


def class_tars_source(folder: Path, tars: Sequence[Path], classes: Sequence[str] | None = None) -> SpanSource:
    """The train tar unpacked once: n01440764.tar, n01443537.tar, ..."""
    by_wnid = {path.stem: path for path in tars}
    wnids = _class_list(folder, by_wnid, classes)
    table = SpanTable([str(by_wnid[w]) for w in sorted(by_wnid)])
    for archive_id, wnid in enumerate(sorted(by_wnid)):
        with by_wnid[wnid].open("rb") as file:
            _add_class(table, file, by_wnid[wnid], wnid, wnids.index(wnid), archive_id)
    return _by_class_and_name(table, folder, wnids)


def _class_list(where: Path, found: Collection[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    odd = [name for name in found if not is_wnid(name)]
    if odd or not found:
        raise UserError(f"{where}: expected one tar per wnid, found {odd[0] + '.tar' if odd else 'none'}")
    wnids = tuple(sorted(found)) if classes is None else tuple(classes)
    unknown = sorted(set(found) - set(wnids))
    if unknown:
        raise UserError(f"{where}: class {unknown[0]!r} is not among the {len(wnids)} training classes")
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
