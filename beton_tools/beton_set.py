"""One or more `.beton` files as one table: sample ids run through the files in their order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from beton_tools.beton_paths import BetonPaths, describe_paths, find_betons
from beton_tools.cgroup import usable_cpus
from beton_tools.errors import UserError
from beton_tools.format import MAX_CLASSES, Beton, SampleTable
from beton_tools.manifest import Manifest
from beton_tools.parts import Part

MOST_THREADS = 16  # that open files: more would only wait for each other
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Largest(NamedTuple):
    """Largest values over the samples of a file, and the mean number of pixels."""

    height: int
    width: int
    num_bytes: int
    pixels: int
    pixels_and_bytes: int  # 3 * pixels + num_bytes of one sample
    mean_pixels: float


@dataclass(frozen=True)
class FileClasses:
    """Classes and identity of one file.

    names: label -> name; None without a manifest, as for files of FFCV.
    counts: int64 (C,), samples of each label.
    checksum, part: of the manifest.
    """

    names: list[str] | None
    counts: np.ndarray
    checksum: str | None
    part: Part | None


@dataclass(frozen=True, eq=False)
class BetonSet(SampleTable):
    """The samples of one or more files: file f has the ids starts[f] to starts[f + 1] - 1.

    Attributes:
        files: their tables are views of this object's.
        starts: int64 (F + 1,).
        descriptors: int32 (F,), of the open files.
        classes: of each file.
        largest: over all samples.
    """

    named: str
    files: tuple[Beton, ...]
    starts: np.ndarray
    descriptors: np.ndarray
    classes: tuple[FileClasses, ...] = field(repr=False)
    largest: Largest

    @classmethod
    def open(cls, data: BetonPaths) -> BetonSet:
        """Open and validate files.

        Args:
            data: a file, a pattern, or several of them; see `find_betons`.

        Raises:
            UserError: a file is missing or not a complete, consistent `.beton`, its manifest is of another file, a label is
                outside its classes, or the files differ in fields or classes.
        """
        opened = _in_threads(_open_file, find_betons(data))
        betons, classes = [beton for beton, _, _ in opened], tuple(found for _, found, _ in opened)
        largest = [found for _, _, found in opened]
        del opened  # it would keep the tables that are moved
        _check_fields(betons)
        _check_classes(betons, classes)
        counts = [beton.num_samples for beton in betons]
        starts = np.append(0, np.cumsum(counts))
        metadata, pointers, sizes = _joined(betons, starts)
        return cls(
            betons[0].fields,
            metadata,
            pointers,
            sizes,
            named=describe_paths(data),
            files=tuple(betons),
            starts=starts,
            descriptors=np.array([beton.descriptor for beton in betons], np.int32),
            classes=classes,
            largest=_merged(largest, counts),
        )

    @property
    def title(self) -> str:
        return self.named

    @property
    def file_size(self) -> int:
        """Bytes of all files."""
        return sum(beton.file_size for beton in self.files)

    @property
    def has_class_names(self) -> bool:
        return any(c.names is not None for c in self.classes)

    @property
    def class_names(self) -> list[str]:
        """Names by label: from the manifests, otherwise "class 0" to the highest label."""
        for found in self.classes:
            if found.names is not None:
                return found.names
        return [f"class {k}" for k in range(max(len(c.counts) for c in self.classes))]

    @property
    def class_counts(self) -> list[int]:
        """Samples of each class."""
        counts = np.zeros(len(self.class_names), np.int64)
        for found in self.classes:
            counts[: len(found.counts)] += found.counts
        return counts.tolist()

    @property
    def content(self) -> dict[str, Any]:
        """Identifies the samples and their order, to compare data between processes and runs; the same wherever files lie.

        `checksum` only if every file has a manifest; `files` (names), `file_samples` and `file_checksums` only of several.
        """
        checksums = [c.checksum for c in self.classes]
        found: dict[str, Any] = {"num_samples": self.num_samples}
        if None not in checksums:
            joined = "".join(map(str, checksums))
            several = hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()
            found["checksum"] = checksums[0] if len(checksums) == 1 else several
        if len(self.files) > 1:
            found["files"] = [beton.path.name for beton in self.files]
            found["file_samples"] = [beton.num_samples for beton in self.files]
            found["file_checksums"] = checksums
        return found

    @property
    def missing_parts(self) -> list[str]:
        """Parts of a divided conversion, such as "3/16", of which others are here; [] if files are not parts of one."""
        parts = [c.part for c in self.classes]
        counts = {part.count for part in parts if part is not None}
        if None in parts or len(counts) != 1:
            return []
        (count,) = counts
        return [str(part) for k in range(1, count + 1) if (part := Part(k, count)) not in parts]

    def files_of(self, ids: np.ndarray) -> np.ndarray:
        """The number of the file of each sample; ids (B,)."""
        if len(self.files) == 1:
            return np.zeros(len(ids), np.intp)
        return np.searchsorted(self.starts, ids, side="right") - 1

    def locate(self, sample_id: int) -> tuple[Beton, int]:
        """The file of a sample, and its id there.

        Raises:
            UserError: no such sample.
        """
        self.check_id(sample_id)
        number = int(self.files_of(np.array([sample_id]))[0])
        return self.files[number], sample_id - int(self.starts[number])

    def image_bytes(self, sample_id: int) -> np.ndarray:
        beton, own_id = self.locate(sample_id)
        return beton.image_bytes(own_id)

    def check_unchanged(self) -> None:
        """Raise a UserError if a file was written to or truncated since it was opened."""
        for beton in self.files:
            beton.check_unchanged()


def _in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Results in the order of the items. NumPy and reading release the GIL."""
    if len(items) == 1:
        return [work(items[0])]
    with ThreadPoolExecutor(min(len(items), usable_cpus(), MOST_THREADS)) as threads:
        return list(threads.map(work, items))


def _open_file(path: Path) -> tuple[Beton, FileClasses, Largest]:
    beton = Beton.open(path)
    manifest = _read_manifest(beton)
    return beton, _read_classes(beton, manifest), _largest(beton)


def _read_manifest(beton: Beton) -> Manifest | None:
    """The manifest beside the file, if there is one.

    Raises:
        UserError: it describes another file.
    """
    manifest = Manifest.of_beton(beton.path)
    if manifest and (manifest.num_samples, manifest.file_size) != (beton.num_samples, beton.file_size):
        raise UserError(
            f"{beton.path}: its manifest is of another file ({manifest.num_samples} samples, {manifest.file_size} bytes); "
            "write the file again, or delete the manifest"
        )
    return manifest


def _read_classes(beton: Beton, manifest: Manifest | None) -> FileClasses:
    """Raises a UserError if a label is negative or too large."""
    labels = np.ascontiguousarray(beton.labels)
    lowest, highest = int(labels.min()), int(labels.max())
    limit = min(MAX_CLASSES if manifest is None else manifest.num_classes, MAX_CLASSES)
    if lowest < 0 or highest >= limit:
        raise UserError(
            f"{beton.path}: labels range from {lowest} to {highest}, expected 0 to {limit - 1}; write the file again"
        )
    counts = np.bincount(labels)
    if manifest is None:
        return FileClasses(None, counts, None, None)
    names = [manifest.class_label(k) for k in range(manifest.num_classes)]
    return FileClasses(names, counts, manifest.checksum, manifest.part)


def _largest(beton: Beton) -> Largest:
    heights, widths = beton.heights.astype(np.int64), beton.widths.astype(np.int64)
    pixels = heights * widths
    return Largest(
        int(heights.max()),
        int(widths.max()),
        int(beton.sizes.max()),
        int(pixels.max()),
        int((3 * pixels + beton.sizes).max()),
        float(pixels.mean()),
    )


def _merged(parts: Sequence[Largest], counts: Sequence[int]) -> Largest:
    """counts: samples of each part."""
    height, width, num_bytes, pixels, both = (max(values) for values in list(zip(*parts, strict=True))[:-1])
    mean = sum(count * part.mean_pixels for count, part in zip(counts, parts, strict=True)) / sum(counts)
    return Largest(height, width, num_bytes, pixels, both, mean)


def _joined(betons: list[Beton], starts: np.ndarray) -> list[np.ndarray]:
    """metadata, pointers and sizes of all files; the tables of `betons` become views of them."""
    first = betons[0]
    if len(betons) == 1:
        return [first.metadata, first.pointers, first.sizes]
    total = int(starts[-1])
    tables = [np.empty(total, table.dtype) for table in (first.metadata, first.pointers, first.sizes)]

    def move(number: int) -> None:
        beton, span = betons[number], slice(starts[number], starts[number + 1])
        views = [table[span] for table in tables]
        for view, table in zip(views, (beton.metadata, beton.pointers, beton.sizes), strict=True):
            view[:] = table
            view.flags.writeable = False
        metadata, pointers, sizes = views
        # a duplicate, because the old object closes its descriptor
        own = os.dup(beton.descriptor)
        betons[number] = replace(beton, metadata=metadata, pointers=pointers, sizes=sizes, descriptor=own)

    _in_threads(move, range(len(betons)))
    for table in tables:
        table.flags.writeable = False
    return tables


# agreement ------------------------------------------------------------------------------------------------------------


def _check_fields(betons: Sequence[Beton]) -> None:
    first = betons[0]
    for beton in betons[1:]:
        if beton.fields != first.fields:
            raise UserError(
                f"{beton.path} has the fields {[f.name for f in beton.fields]}, {first.path} "
                f"{[f.name for f in first.fields]}; give files with the same fields"
            )


def _check_classes(betons: Sequence[Beton], classes: Sequence[FileClasses]) -> None:
    """Refuse files whose manifests name different classes, or labels beyond them in a file without a manifest."""
    named = [(b, c.names) for b, c in zip(betons, classes, strict=True) if c.names is not None]
    if not named:
        return
    first, names = named[0]
    for beton, found in named[1:]:
        if len(found) != len(names):
            raise UserError(
                f"{beton.path} has {len(found)} classes, {first.path} {len(names)}; convert it with --classes-of {first.path}"
            )
        label = next((k for k, (a, b) in enumerate(zip(names, found, strict=True)) if a != b), None)
        if label is not None:
            raise UserError(
                f"{beton.path}: class {label} is {found[label]}, in {first.path} it is {names[label]}; "
                f"convert it with --classes-of {first.path}"
            )
    for beton, own in zip(betons, classes, strict=True):
        if len(own.counts) > len(names):
            raise UserError(
                f"{beton.path}: labels reach {len(own.counts) - 1}, {first.path} has {len(names)} classes; give files with "
                "the same classes"
            )
