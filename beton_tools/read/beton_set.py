"""One or more `.beton` files, or some of their samples, as one table.

Samples are numbered through the files, in file order.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.errors import UserError
from beton_tools.base.pixels import CHANNELS
from beton_tools.base.typed_json import Count, Document
from beton_tools.read.beton_paths import SUBSET, BetonPaths, describe_paths, find_betons
from beton_tools.read.class_list import BY_POSITION, Classes, compare_classes
from beton_tools.read.format import MAX_CLASSES, Beton
from beton_tools.read.manifest import Manifest, read_checksum
from beton_tools.read.parts import Conversion, list_missing, refuse_other_parts
from beton_tools.read.sample_table import SampleTable, count_classes, image_field
from beton_tools.read.subset_file import FileIdentity, SubsetFile, is_subset_file, read_subset_file

MOST_THREADS = 16  # threads that open files: more would only wait for each other
_ROWS = 1 << 18  # samples that are examined at once
# Files without a manifest are read to identify them, if they have at most this many bytes (half a second from memory).
READ_WHOLE = 1 << 30


class Largest(NamedTuple):
    """Largest values over a file's samples, and the mean number of pixels."""

    height: int
    width: int
    num_bytes: int
    pixels: int
    pixels_and_bytes: int  # CHANNELS * pixels + num_bytes of one sample
    mean_pixels: float


@dataclass(frozen=True)
class FileClasses:
    """One file's classes and identity.

    Attributes:
        known: The classes by label, or None without a manifest, as for FFCV's files.
        counts: int64 (C,), samples per label.
        checksum: From the manifest.
        source: The conversion that wrote the file, alone or with other parts. None without a manifest.
        background: The colour under transparent pixels, if any image is known to have them.
        animations: How many images are known to be an animation's first frame.
    """

    known: Classes | None
    counts: np.ndarray
    checksum: str | None = None
    source: Conversion | None = None
    background: str | None = None
    animations: int = 0

    @property
    def classes(self) -> Classes:
        """The classes. Without a manifest they only have numbers."""
        return Classes.unnamed(len(self.counts)) if self.known is None else self.known


class Content(Document, omit_defaults=True):
    """Identifies what a set of files contains. It is stored in checkpoints.

    Attributes:
        files: The files' names.
        identities: The files' identities, which change with their bytes.
        checksum: Checksum over the images, whatever the files are called. It comes from the manifests. A file without a
            manifest is read whole. If such a file is larger than READ_WHOLE, the checksum is None.
    """

    num_samples: Count
    files: list[str]
    identities: list[Count]
    checksum: str | None = None

    def has_same_images(self, other: Content) -> bool:
        """Return True if the samples are the same, in the same order. File names may differ."""
        if self.num_samples != other.num_samples or self.identities != other.identities:
            return False
        return None in (self.checksum, other.checksum) or self.checksum == other.checksum


@dataclass(frozen=True, eq=False)
class BetonSet(SampleTable):
    """The samples in one or more files. File f has the ids starts[f] to starts[f + 1] - 1.

    Attributes:
        files: The files. Their tables are views into this object's tables, unless only some samples are selected.
        starts: int64 (F + 1,).
        descriptors: int32 (F,), the open files' descriptors.
        classes: Each file's classes.
        largest: Largest values over all samples.
        ids_in_files: int64 (N,), each sample's id in its file. None if all samples are selected.
    """

    named: str
    files: tuple[Beton, ...]
    starts: np.ndarray
    descriptors: np.ndarray
    classes: tuple[FileClasses, ...] = field(repr=False)
    largest: Largest
    ids_in_files: np.ndarray | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the files share with this object, and the descriptors, which another process does not have."""
        if self.ids_in_files is not None:
            return self.__dict__ | {"descriptors": None}
        sets = None if self.label_sets is None else self.label_sets[:0]
        files = tuple(beton.with_tables(self.metadata[:0], self.sizes[:0], sets) for beton in self.files)
        return self.__dict__ | {"files": files, "descriptors": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.ids_in_files is None:
            sets = self.label_sets
            files = tuple(
                beton.with_tables(self.metadata[a:b], self.sizes[a:b], None if sets is None else sets[a:b])
                for beton, (a, b) in zip(self.files, pairwise(self.starts.tolist()), strict=True)
            )
            self.__dict__.update(files=files)
        self.__dict__.update(descriptors=np.array([beton.descriptor for beton in self.files], np.int32))

    @classmethod
    def open(
        cls,
        data: BetonPaths,
        *,
        labelled: bool = True,
        classes_by_position: bool = False,
        opened: Sequence[BetonSet] = (),
    ) -> BetonSet:
        """Open and validate files.

        Args:
            data: A file, a pattern, or several of them (see `find_betons`). A subset file stands for its samples.
            labelled: Whether to read classes and manifests too. If not, `labels` may be missing or hold numbers that are
                not labels.
            classes_by_position: Whether equal labels mean the same classes in all files, whatever their manifests say.
            opened: Sets whose files are not opened again if `data` names them too.

        Raises:
            UserError: A file is missing or not a complete, consistent `.beton`, its manifest belongs to another file, a
                label is outside its classes, the files differ in fields or classes, some have the same images or are
                parts of different conversions, or a file has changed since a subset was taken from it.
        """
        if is_subset_file(data):
            return cls._open_subset(Path(data), classes_by_position, opened)
        paths = find_betons(data)
        subset = next((path for path in paths if is_subset_file(path)), None)
        if subset is not None:
            raise UserError(f"{subset}: a subset ({SUBSET}) must be used alone. Name no other file beside it")
        whole = (betons for betons in opened if betons.ids_in_files is None)
        there = {b.path: (b, c) for betons in whole for b, c in zip(betons.files, betons.classes, strict=True)}
        with ThreadPoolExecutor(min(len(paths), usable_cpus(), MOST_THREADS)) as threads:
            found = list(threads.map(lambda path: there.get(path) or _open_file(path, labelled), paths))
        betons, classes = tuple(beton for beton, _ in found), tuple(of_file for _, of_file in found)
        _check_fields(betons)
        if not classes_by_position:
            _check_classes(betons, classes)
        refuse_other_parts({beton.path: of_file.source for beton, of_file in zip(betons, classes, strict=True)})
        _refuse_copies(betons)
        starts = np.append(0, np.cumsum([len(beton) for beton in betons]))
        opened_files = list(betons)
        del betons, found  # `_join` frees each file's tables after it has copied them
        metadata, sizes, sets = _join(opened_files, starts)
        betons = tuple(opened_files)
        for table in (metadata, sizes):
            table.flags.writeable = False
        return cls(
            betons[0].fields,
            metadata,
            sizes,
            label_sets=sets,
            named=describe_paths(data),
            files=betons,
            starts=starts,
            descriptors=np.array([beton.descriptor for beton in betons], np.int32),
            classes=classes,
            largest=_largest(metadata[image_field(betons[0].fields).column], sizes),
        )

    @classmethod
    def _open_subset(cls, path: Path, classes_by_position: bool, opened: Sequence[BetonSet]) -> BetonSet:
        subset = read_subset_file(path)
        missing = next((file.path for file in subset.files if not os.path.lexists(file.path)), None)
        if missing is not None:
            raise UserError(f"{missing}: no such file, but {path} lists samples in it. Put it back")
        files = [file.path for file in subset.files]
        whole = cls.open(files, classes_by_position=classes_by_position, opened=opened)
        subset.refuse_changed(whole.files, path)
        return replace(whole.take(subset.samples), named=str(path))

    def take(self, samples: np.ndarray) -> BetonSet:
        """Select samples, which are numbered from 0 and keep all classes.

        The files stay open as long as one of the sets exists.

        Args:
            samples: int64 (n,), ascending ids, at least one.
        """
        starts = np.searchsorted(samples, self.starts)
        if self.ids_in_files is None:
            in_files = samples - self.starts[self.files_of(samples)]
        else:
            in_files = self.ids_in_files[samples]
        sets = None if self.label_sets is None else self.label_sets[samples]
        taken = replace(
            self, metadata=self.metadata[samples], sizes=self.sizes[samples], label_sets=sets, starts=starts,
            ids_in_files=in_files,
        )  # fmt: skip
        for table in (taken.metadata, taken.sizes, in_files):
            table.flags.writeable = False
        spans = [slice(begin, end) for begin, end in pairwise(starts.tolist())]
        classes = tuple(
            replace(c, counts=count_classes(taken.labels[span], len(c.counts)))
            for c, span in zip(self.classes, spans, strict=True)
        )
        return replace(taken, classes=classes, largest=_largest(taken.image_column, taken.sizes))

    @property
    def title(self) -> str:
        return self.named

    @property
    def file_size(self) -> int:
        """All files' bytes together."""
        return sum(beton.file_size for beton in self.files)

    @property
    def has_class_names(self) -> bool:
        return any(c.known is not None for c in self.classes)

    @property
    def known_classes(self) -> Classes:
        """The classes by label: from the first manifest, otherwise numbered up to the highest label."""
        named = (c.known for c in self.classes if c.known is not None)
        return next(named, None) or Classes.unnamed(max(len(c.counts) for c in self.classes))

    @property
    def class_names(self) -> list[str]:
        """A different name for each label: from the manifests, otherwise "class 0" up to the highest label."""
        return list(self.known_classes.labels)

    @property
    def class_counts(self) -> list[int]:
        """How many samples each class has."""
        counts = np.zeros(max(len(self.known_classes), *(len(c.counts) for c in self.classes)), np.int64)
        for of_file in self.classes:
            counts[: len(of_file.counts)] += of_file.counts
        return counts.tolist()

    @cached_property
    def content(self) -> Content:
        """Identify the samples and their order, to compare data between processes and runs.

        The result is the same wherever the files lie.
        """
        checksums = [self._checksum(number) for number in range(len(self.files))]
        joined = None
        if None not in checksums:
            several = hashlib.blake2b("".join(map(str, checksums)).encode(), digest_size=8).hexdigest()
            joined = checksums[0] if len(checksums) == 1 else several
        return Content(
            num_samples=self.num_samples, checksum=joined,
            files=[beton.path.name for beton in self.files], identities=[beton.identity() for beton in self.files],
        )  # fmt: skip

    def _checksum(self, number: int) -> str | None:
        """Return the checksum of a file's samples, or None for a large file without a manifest."""
        beton, checksum = self.files[number], self.classes[number].checksum
        if checksum is None and self.file_size <= READ_WHOLE:
            checksum = read_checksum(beton)
        if self.ids_in_files is None:
            return checksum
        ids = self.ids_in_files[self.starts[number] : self.starts[number + 1]]
        return hashlib.blake2b((checksum or "").encode() + ids.tobytes(), digest_size=8).hexdigest()

    @property
    def missing_parts(self) -> str:
        """List a divided conversion's first missing parts, and how many more are missing: "2/16, 5/16".

        The text is "" if none are missing, or if the files do not belong to one conversion.
        """
        parts = [c.source.part for c in self.classes if c.source is not None]
        return list_missing([part for part in parts if part is not None]) if len(parts) == len(self.classes) else ""

    def files_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's file. ids: (B,)."""
        if len(self.files) == 1:
            return np.zeros(len(ids), np.intp)
        return np.searchsorted(self.starts, ids, side="right") - 1

    def locate(self, sample_id: int) -> tuple[Beton, int]:
        """Return a sample's file, and its id there. Raises UserError if there is no such sample."""
        self.check_id(sample_id)
        number = int(self.files_of(np.array([sample_id]))[0])
        if self.ids_in_files is not None:
            return self.files[number], int(self.ids_in_files[sample_id])
        return self.files[number], sample_id - int(self.starts[number])

    def read_names(self) -> list[str] | None:
        """Return the N images' names in their sources, or None if a file has no manifest.

        Raises:
            UserError: The names in a manifest are damaged.
        """
        found = [None if manifest is None else list(manifest.names) for manifest in self._manifests()]
        if any(names is None for names in found):
            return None
        every = [name for names in found for name in names or ()]
        return every if self.ids_in_files is None else [every[i] for i in self._ids_through_files().tolist()]

    def read_groups(self) -> list[str] | None:
        """Return each sample's group, "" for none. None if no file has groups."""
        columns = [None if manifest is None else manifest.groups for manifest in self._manifests()]
        if all(groups is None for groups in columns):
            return None
        every: list[str] = []
        for beton, groups in zip(self.files, columns, strict=True):
            every += [""] * beton.num_samples if groups is None else groups
        return every if self.ids_in_files is None else [every[i] for i in self._ids_through_files().tolist()]

    def read_contents(self) -> np.ndarray | None:
        """Return the samples' content ids in the source, uint64 (N,). None if a file has no version 2 manifest."""
        found = [None if manifest is None else manifest.contents for manifest in self._manifests()]
        ids = [contents for contents in found if contents is not None]
        if len(ids) < len(found):
            return None
        every = np.concatenate(ids)
        return every if self.ids_in_files is None else every[self._ids_through_files()]

    def _manifests(self) -> list[Manifest | None]:
        return [Manifest.of_beton(beton.path) for beton in self.files]

    @property
    def animations(self) -> int:
        """How many images in the files are an animation's first frame."""
        return sum(c.animations for c in self.classes)

    @property
    def background(self) -> str | None:
        """The colour under transparent pixels. None if no file is known to have images with such pixels.

        Raises:
            UserError: It differs between files.
        """
        pairs = zip(self.files, self.classes, strict=True)
        found = {of_file.background: beton.path for beton, of_file in pairs if of_file.background is not None}
        if len(found) > 1:
            (first, path), (second, other), *_ = found.items()
            raise UserError(
                f"{path} has the background {first} under transparent pixels, but {other} has {second}. Convert them with the "
                "same --background"
            )
        return next(iter(found), None)

    def as_subset_file(self) -> SubsetFile:
        """Return these samples as a `SubsetFile`."""
        return SubsetFile([FileIdentity.of(beton) for beton in self.files], self._ids_through_files())

    def _ids_through_files(self) -> np.ndarray:
        """int64 (N,): each sample's id among all samples in the files."""
        if self.ids_in_files is None:
            return np.arange(len(self), dtype=np.int64)
        first = np.append(0, np.cumsum([beton.num_samples for beton in self.files]))
        ids: np.ndarray = first[self.files_of(np.arange(len(self)))] + self.ids_in_files
        return ids

    def image_bytes(self, sample_id: int) -> np.ndarray:
        beton, own_id = self.locate(sample_id)
        return beton.image_bytes(own_id)

    def check_unchanged(self) -> None:
        """Raise UserError if a file was written to or truncated since it was opened."""
        for beton in self.files:
            beton.check_unchanged()


def _open_file(path: Path, labelled: bool) -> tuple[Beton, FileClasses]:
    beton = Beton.open(path)
    if not labelled:
        return beton, FileClasses(None, np.zeros(0, np.int64))
    return beton, _read_classes(beton, Manifest.of_opened(beton))


def _join(betons: list[Beton], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Join the files' tables: metadata, sizes, label sets. Each file's own tables become views into these."""
    first, count = betons[0], int(starts[-1])
    if len(betons) == 1:
        return first.metadata, first.sizes, first.label_sets
    try:
        metadata, sizes = np.empty(count, first.metadata.dtype), np.empty(count, first.sizes.dtype)
        sets = (
            None if first.label_sets is None else np.empty((count, first.label_sets.shape[1]), first.label_sets.dtype)
        )
        for number, (begin, end) in enumerate(pairwise(starts.tolist())):
            beton, span = betons[number], slice(begin, end)
            # as bytes, because NumPy copies structured rows slowly, field by field
            metadata[span].view(np.uint8)[:] = beton.metadata.view(np.uint8)
            sizes[span] = beton.sizes
            if sets is not None:
                sets[span] = beton.label_sets
            betons[number] = beton.with_tables(metadata[span], sizes[span], None if sets is None else sets[span])
    except MemoryError as error:
        raise UserError(f"the tables of {count:,} samples are larger than the memory") from error
    return metadata, sizes, sets


def _read_classes(beton: Beton, manifest: Manifest | None) -> FileClasses:
    """Read a file's classes. Raises UserError if a label is negative or too large."""
    labels = beton.labels
    lowest, highest = int(labels.min()), int(labels.max()) if labels.ndim == 1 else labels.shape[1] - 1
    limit = min(MAX_CLASSES if manifest is None else manifest.num_classes, MAX_CLASSES)
    if lowest < 0 or highest >= limit:
        raise UserError(
            f"{beton.path}: labels range from {lowest} to {highest}, but should range from 0 to {limit - 1}. Write the file again"
        )
    counts = count_classes(labels)
    if manifest is None:
        return FileClasses(None, counts)
    return FileClasses(
        manifest.known_classes, counts, manifest.checksum, manifest.conversion, manifest.background, manifest.animations
    )


def _largest(image: np.ndarray, sizes: np.ndarray) -> Largest:
    found, total = [], 0
    for first in range(0, len(sizes), _ROWS):
        rows, own = image[first : first + _ROWS], sizes[first : first + _ROWS]
        pixels = rows["height"].astype(np.int64) * rows["width"]
        columns = (rows["height"], rows["width"], own, pixels, CHANNELS * pixels + own)
        found.append([int(values.max()) for values in columns])
        total += int(pixels.sum())
    height, width, num_bytes, most, both = map(max, zip(*found, strict=True))
    return Largest(height, width, num_bytes, most, both, total / len(sizes))


# agreement ------------------------------------------------------------------------------------------------------------


def _check_fields(betons: Sequence[Beton]) -> None:
    names = [[field.name for field in beton.fields] for beton in betons]
    for beton, own in zip(betons, names, strict=True):
        if beton.fields != betons[0].fields:
            raise UserError(
                f"{beton.path} has the fields {own}, but {betons[0].path} has {names[0]}. Give files with the same fields"
            )


def _refuse_copies(betons: Sequence[Beton]) -> None:
    """Refuse a copy of another file, or a hard link to it. FFCV's files have no manifest that would tell."""
    counts = Counter((len(beton), beton.file_size) for beton in betons)
    first: dict[int, Beton] = {}
    for beton in (beton for beton in betons if counts[len(beton), beton.file_size] > 1):
        if (other := first.setdefault(beton.identity(), beton)) is not beton:
            raise UserError(f"{beton.path} has the same images as {other.path}. Leave one out")


def _check_classes(betons: Sequence[Beton], classes: Sequence[FileClasses]) -> None:
    """Refuse files with different classes, and files whose classes cannot be compared."""
    nameless = next((beton for beton, own in zip(betons, classes, strict=True) if own.known is None), None)
    named = next((beton for beton, own in zip(betons, classes, strict=True) if own.known is not None), None)
    if nameless is not None and named is not None:
        raise UserError(
            f"{nameless.path} has no manifest that names its classes, but {named.path} has one, so nothing tells whether their "
            f"labels mean the same. Convert its images with --classes-of {named.path}. {BY_POSITION}"
        )
    largest = max(range(len(betons)), key=lambda k: len(classes[k].classes))
    first = betons[0 if nameless is None else largest]
    expected = classes[0 if nameless is None else largest].classes
    for beton, own in zip(betons, classes, strict=True):
        advice = f"Convert it with --classes-of {first.path}" if nameless is None else BY_POSITION
        compare_classes(own.classes, expected, str(beton.path), str(first.path), advice)
